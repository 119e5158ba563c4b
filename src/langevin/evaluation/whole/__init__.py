"""The whole evaluation of a text-to-image model: parts that share pictures, each kept when it is done."""
