"""The report: one self-contained HTML file about one run folder.

`facts` reads the folder (files are the truth; what is not there yet is left out), `charts` and `lineage_graph` draw SVG,
`render` fills the template.
"""
