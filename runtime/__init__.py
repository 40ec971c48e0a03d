"""What keeps a run going. A fork edits nothing here.

The folder of a run     run_folder, run_config, files, metric_writing, average_table, environment, trackers
Checkpoints             checkpointing, stored, trees, origin, foreign_names
The process             errors, interruption, hosts, workers, progress, clocks, profiling, caching
The device              sharding, dispatch, nonfinite, convolution, pooling, batch_statistics, freezing
Config                  fields, rules, averages, task_checks, durations
Data                    sources, splits, tfds_sets, normalization, permutation, rows, readers, stream
Images                  image_files, records, decoding, damaged, rand_augment
Statistics              intervals, score_metrics

Nothing here imports anything of the project but `train_state`, `averaging`, `optimizers`, `streams` and its
neighbours; a test says so.
"""
