"""Judges whether a challenger may replace the champion: both bundles are run on the same images.

verdict = judge(challenger, champion, checkout)    # tasks.gate.judge
print(as_lines(verdict))                           # tasks.gate.words
"""
