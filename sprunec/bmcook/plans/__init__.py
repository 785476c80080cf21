"""BMCook's files into native plans: bmcook.json with its l0_pruning.json or sprune.json, and the script's flags.

plan_builder     the plan as it grows, and the sections of files that it is made of
stages           coarse-grained and fine-grained: one l0_pruning.json, one stage
l0_units         mask_method structure and sprune, in the keys of all three generations
patterns         m4n2_1d and m4n2_2d
document         what stands around the passes, the distillation section among it
stages_to_plan   the plan of it all
convert          the plan in a file, to keep
"""
