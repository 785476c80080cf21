"""BMCook's files into native plans: bmcook.json with its l0_pruning.json or sprune.json, and the script's flags.

files       read both files, see which one is which
flags       what the original script took on its command line
stages      coarse-grained and fine-grained: one l0_pruning.json, one stage
units       mask_method structure and sprune, in the keys of all three generations
patterns    m4n2_1d and m4n2_2d
distill     the distillation section
convert     the plan of it all
"""
