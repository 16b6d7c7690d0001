"""``report.html``: one page, without anything it must load, that shows people what a Job did and why.

findings.py   evidence of a Job, a measured drift, or a folder that a command wrote -> ``Findings``
figures.py    findings -> inline SVG, drawn by matplotlib
page.py       findings and figures -> HTML, escaped by jinja2
keeping.py    a Job's page into the store; one that cannot be drawn costs a line in the log, not the Job
command.py    ``readapt report``
"""
