"""What a run does about faults that need nobody: lanes with bad numbers, steps that would do harm, ranks that stand.

| module | fault | what is done |
|---|---|---|
| `quarantine` | a lane's numbers are not finite | it reads nothing and begins anew with an empty memory |
| `spikes` | a loss is not finite or far above recent ones | the step is skipped; too many in a row end the run |
| `watchdog` | a rank does not move on | a table of who waits where, and an end that asks to be started again |

Damaged and half-written checkpoints are `infty_pretrain.checkpoint`'s, signals `infty_pretrain.signals`'s.
"""
