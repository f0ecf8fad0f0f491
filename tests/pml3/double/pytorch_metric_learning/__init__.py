"""A contract double of pytorch-metric-learning 3: what its documentation says of what a plug-in touches, and no more.

Written from the documentation of 3.0.x, never from its code, for a process of its own in which it stands in place of
PML. It is strict where a page is: keyword-only options, no divisor outside of `DivisorReducer`, index tuples checked,
no name that only version 2 has. Where the pages are silent, `switches` says which of the possible answers it gives.

Marks in the comments: [p] a page says it, [d] it follows from what a page says, [g] a guess, [?] unknown, a switch.
There is no `__version__`, as there is none in version 3 [p].
"""
