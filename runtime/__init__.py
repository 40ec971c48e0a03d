"""What keeps a run going. A fork edits nothing here.

The folder of a run     run_folder, checkpointing, stored, metric_writing, average_table, environment
The process             errors, interruption, progress, clocks, profiling, caching
The device              dispatch, sharding, metrics, nonfinite, convolution, batch_statistics
Config and data         fields, durations, sources, permutation
Statistics              intervals

Nothing here imports anything of the project but `train_state`, `averaging`, `optimizers`, `streams` and its
neighbours; a test says so.
"""
