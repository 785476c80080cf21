"""What tests share.

small_plans       plans and weights for whole runs that take a second
guide             a BMCook user's folder, and the guide's commands in it
bmcook_files      bmcook.json, l0_pruning.json and their kind, written into a folder
live_sets, naive  CPM-Live's binary sets, and its batches, in the plainest code that makes them
live_loader       CPM-Live's model, which must load what is emitted for it
cut_models        models cut every which way, and the masked ones that they must equal
decoding          what a cache must compute
students          teachers and students to distil between
strange           a transformer that no family describes, for the tracer and the axes
processes         runs of several ranks on one machine
offloaded         one rank that keeps its weights sharded and offloaded, stopped and resumed
bmtrain_double    a stand-in for CUDA and NCCL, under which BMTrain's own Python runs
faults            a disk that fails at a chosen call
mutants, contents files changed at random; whole files with odd contents
"""
