"""The page of a whole evaluation: its figures in tables, as they came out, with the plots and sheets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from langevin.evaluation.colours import PRESENT
from langevin.evaluation.nearest import NEIGHBOURS
from langevin.evaluation.whole.captions import NONE, OTHERS, OWN
from langevin.evaluation.whole.subject import IMAGES

Found = Mapping[str, Any]


def page(report: Mapping[str, Any], command: str = "") -> str:
    """The page as Markdown, of a report of `evaluate_whole`; parts that are not there are left out."""
    settings, parts = report["settings"], report["parts"]
    lines = [*_head(settings, command), *_contents(parts)]
    for name, write in _SECTIONS.items():
        if name in parts:
            lines += ["", *write(parts[name])]
    return "\n".join(lines) + "\n"


def _head(settings: Found, command: str) -> list[str]:
    data, scale, how = settings["data"], settings["scale"], settings["generation"]
    files = ", ".join(f"`{f['name']}` (sha256 {f['sha256'][:12]})" for f in settings["model"]["files"]) or "in memory"
    lines = ["# Evaluation of the model", ""]
    if command:
        lines += [f"This page was written by `{command}`: nothing in it was chosen or changed by hand.", ""]
    return [
        *lines,
        f"- **Model**: {files}; unless a table says otherwise {how['sampler']}, {how['steps']} steps, guidance "
        f"{how['guidance']:g}, in {how['precision']}.",
        f"- **Features**: {settings['features']['name']} (sha256 {settings['features']['sha256'][:12]}). A model that "
        "was trained on this CLIP's text states is favoured by its scores.",
        f"- **Data**: {data['train']['pictures']} training pictures and {data['held_out']['pictures']} held-out ones, "
        f"of names that are in no training picture, at {data['size']} x {data['size']} pixels (fingerprints "
        f"{data['train']['fingerprint'][:12]}, {data['held_out']['fingerprint'][:12]}).",
        f"- **Seeds**: picture i of a set has the seed {scale['seed']} + i, on the sheet i. Nothing was picked.",
        "- *real* is what real pictures get by the same measure (the floor of a distance, the ceiling of a share), "
        "*chance* what pictures get that heed no text.",
    ]


def _contents(parts: Mapping[str, Found]) -> list[str]:
    seconds = sum(float(part.get("seconds", 0)) for part in parts.values())
    return [f"- **Time**: {seconds / 60:.0f} min in all, by this run and those that it went on from."]


def _distances(part: Found) -> list[str]:
    return [
        "## Distances to real pictures",
        "",
        "*Known names* are captions of training pictures, of other ones than those that are compared with, in the same "
        "styles; *new names* are captions of held-out pictures. For known names *real* is those captions' own pictures "
        "against the same reference: two halves of the training pictures in the first row, training against held-out "
        "pictures in the second; in the third it is two halves of the held-out pictures.",
        "",
        *_figures(part, with_settings=True),
        "",
        _picture("distances", "Frechet distance, precision and recall beside those of real pictures"),
    ]


def _clip_score(part: Found) -> list[str]:
    return [
        "## CLIP score",
        "",
        "*real*: the pictures whose captions they are; *chance*: those with captions exchanged.",
        "",
        *_figures(part),
        "",
        _picture("clip-score", "CLIP score of known and new names"),
    ]


def _copying(part: Found) -> list[str]:
    median = part["details"]["median_distance"]
    sets = list(next(iter(median.values())))
    return [
        "## Does it copy?",
        "",
        f"{part['details']['verdict']} *Copies* are training pictures through the autoencoder. *Nearer than "
        "a new picture*: how often a picture is nearer to its nearest training picture than a held-out real one to "
        "its, over all pairs; *relatively*: with the distance divided by the mean of those to the nearest "
        f"{NEIGHBOURS}. *As near as a copy*: within the distance of 95 % of the copies.",
        "",
        *_figures(part),
        "",
        *_table(
            ("median, to the nearest training picture", *sets),
            [(space, *(f"{values[name]:.3f}" for name in sets)) for space, values in median.items()],
        ),
        "",
        _picture("copying", "Distances to the nearest training picture"),
        "",
        *_sheets(part, "Samples, each with its nearest training pictures"),
        "",
        "*Samples of known names; below each the nearest training picture in CLIP features, and the nearest in pixels, "
        "with the distances.*",
    ]


def _attributes(part: Found) -> list[str]:
    details = part["details"]
    return [
        "## Colours, styles and numbers",
        "",
        f"{len(details['prompts'])} prompts made of the words of the data. A **colour** is right if it covers "
        f"{PRESENT:.0%} of what is drawn; *real* are real pictures that are called by a colour, *chance* is how often "
        "they show one of the other colours. A **style** is right if a linear classifier of CLIP features and pixel "
        "statistics says it, which is fitted on training pictures after the autoencoder; *real* are held-out ones, "
        "also after it. **Two things** are right if exactly two separate patches are drawn; *real* are real pictures "
        "set "
        f"twice side by side, *chance* single ones; {_share(details['single_pictures_counted_as_one'])} of "
        f"{details['single_pictures']} real pictures of single things are counted as one. A **thing** is found if its "
        f"name is the nearest (among the nearest ten) of all {details['names']} names by CLIP, which was trained on "
        f"the pictures of *real*; of held-out pictures it finds {_share(details['held_out_thing_first'])} "
        f"({_share(details['held_out_thing_among_ten'])}) among the names of both splits.",
        "",
        *_figures(part),
        "",
        _picture("attributes", "Shares of right pictures beside the measures' own on real pictures"),
        "",
        *_sheets(part, "The first pictures of each kind with what was seen"),
        "",
        '*The first prompts of each kind; before the prompt "right", or what was seen instead.*',
    ]


def _captions(part: Found) -> list[str]:
    points = part["details"]["points"]
    rows = [
        (p["set"], str(p["pictures"]), f"{p['sigma']:g}", *(f"{p[told]:.4f}" for told in (OWN, OTHERS, NONE)))
        for p in points
    ]
    return [
        "## What a caption decides",
        "",
        "The mean square error of the denoised latents as a share of their variance, when the denoiser is told the "
        "picture's own caption, another picture's, or none, without guidance. Where they are equal the caption is not "
        "read; of held-out pictures the names were never learned.",
        "",
        *_table(("set", "pictures", "sigma", "own caption", "another's", "none"), rows),
        "",
        _picture("captions", "Error of the denoised latents over noise, by caption"),
    ]


def _sheet(part: Found) -> list[str]:
    prompts = part["details"]["prompts"]
    return [
        f"## {len(prompts)} prompts",
        "",
        *_sheets(part, f"{len(prompts)} prompts with the seeds 0 to {len(prompts) - 1}"),
        "",
        f"*Names at equal distances in the alphabet, every other one with a style; seeds 0 to {len(prompts) - 1} in "
        "reading order.*",
    ]


def _autoencoder(part: Found) -> list[str]:
    return [
        "## The autoencoder",
        "",
        "Real pictures, encoded (the mean of the latent) and decoded; ± is the deviation over the pictures.",
        "",
        *_figures(part),
        "",
        *_sheets(part, "Pictures and what the autoencoder makes of them"),
    ]


def _samplers(part: Found) -> list[str]:
    return [
        "## Steps and samplers",
        "",
        _points_intro(part),
        "",
        *_points(part, ("sampler", "steps")),
        "",
        _picture("samplers", "Quality over the number of steps"),
    ]


def _guidance(part: Found) -> list[str]:
    return [
        "## Guidance",
        "",
        _points_intro(part),
        "",
        *_points(part, ("guidance",)),
        "",
        _picture("guidance", "Quality over guidance"),
    ]


def _points_intro(part: Found) -> str:
    details = part["details"]
    return (
        f"{details['points'][0]['pictures']} pictures a point, the same names and seeds throughout; Frechet distance "
        f"to the reference's training pictures in {details['components']} components."
    )


def _points(part: Found, settings: Sequence[str]) -> list[str]:
    details = part["details"]

    def cells(values: Found) -> list[str]:
        return [
            f"{values['frechet']:.3g}", f"{values['found']:.2f}", f"{values['found_among_ten']:.2f}",
            f"{values['clip_score']:.1f}",
        ]  # fmt: skip

    rows = [
        (*(f"{p[s]:g}" if isinstance(p[s], float) else str(p[s]) for s in settings), *cells(p))
        for p in details["points"]
    ]
    real = ("real pictures", *[""] * (len(settings) - 1), *cells(details["real"]))
    return _table((*settings, "Frechet", "thing first", "among ten", "CLIP score"), [*rows, real])


_SECTIONS: Mapping[str, Callable[[Found], list[str]]] = {
    "distances": _distances,
    "clip-score": _clip_score,
    "copying": _copying,
    "attributes": _attributes,
    "captions": _captions,
    "sheet": _sheet,
    "autoencoder": _autoencoder,
    "samplers": _samplers,
    "guidance": _guidance,
}


def _figures(part: Found, *, with_settings: bool = False) -> list[str]:
    """A table of the figures, without the columns in which nothing stands."""
    rows = []
    for f in part["figures"]:
        spread = f" ± {f['deviation']:.3g}" if f["deviation"] is not None else ""
        arrow = "↓" if f["better"] == "lower" else "↑"
        said = f["settings"].get("components") if with_settings else None
        rows.append(
            (
                f"{f['name']} {arrow}", f"{_number(f['value'])}{spread}", _number(f["real"]), _number(f["chance"]),
                str(f["generated"] or ""), str(f["reference"] or ""),
                f"{said} of {f['settings']['of']} components" if said else "",
            )
        )  # fmt: skip
    header = ("figure", "model", "real", "chance", "pictures", "real pictures", "in")
    kept = [i for i in range(len(header)) if i < 2 or any(row[i] for row in rows)]
    return _table([header[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float | int) else str(value)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


def _sheets(part: Found, alternative: str) -> list[str]:
    """Sheets below one another."""
    return [_picture(name, alternative) for name in part["details"]["sheets"]]


def _picture(name: str, alternative: str) -> str:
    return f"![{alternative}]({IMAGES}/evaluation-{name}.png)"
