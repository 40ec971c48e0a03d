import pytest
from conftest import create_experiment, digits_config
from orbax.checkpoint._src.serialization import ocdbt_utils

from runtime.checkpointing import Checkpoints
from runtime.errors import UserError
from runtime.metric_writing import Written
from runtime.stored import saved_folders


async def nothing(*_, **__) -> None:
    pass


def test_what_was_written_without_an_error_and_cannot_be_read_is_no_checkpoint(tmp_path, monkeypatch):
    state = create_experiment(digits_config()).state
    monkeypatch.setattr(ocdbt_utils, "merge_ocdbt_per_process_files", nothing)
    error = pytest.raises(UserError, match=r"could not be saved: .* does not exist .* the same command continues")
    with error, Checkpoints(tmp_path, 1, state) as checkpoints:
        checkpoints.save(state, state.rejected, None, Written())
    assert not saved_folders(tmp_path / "checkpoints")
