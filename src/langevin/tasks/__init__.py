"""What people ask for: a request becomes a plan, and a plan is run."""
