"""What a run did, for people: learning curves, videos and one self-contained page.

``runs.report_run`` reports a run folder; ``html.write_report`` writes a page from sections that
the caller puts together. Needs the extra ``robot_rl[report]``, imported where it is used.
"""
