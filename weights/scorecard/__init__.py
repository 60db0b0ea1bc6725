"""How good the toy is: trials, a judge's verdicts on them, one table and one figure."""
