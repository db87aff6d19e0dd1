"""The other side: weights and train states, read and written."""

import pathlib
import sys
import tempfile
import time

import torch

from benchmarks import job as job_lib
from benchmarks import side_torch
from benchmarks.pytorch import judge


def files(job: job_lib.Job) -> job_lib.Measurement:
  """Loads a model, exports it, saves and restores a state of full training."""
  side_torch.prepare(job)
  secs = {}
  begin = time.perf_counter()
  model = judge.load(job.model, device=side_torch.device(job))
  # Weights are mapped into memory, and read when they are first used.
  size = sum(p.numel() for p in model.parameters() if p.sum().isfinite())
  secs['load_secs'] = time.perf_counter() - begin

  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
  for parameter in model.parameters():
    parameter.grad = torch.zeros_like(parameter)
  optimizer.step()
  optimizer.zero_grad()
  side_torch.wait()
  with tempfile.TemporaryDirectory() as folder:
    begin = time.perf_counter()
    model.save_pretrained(folder)
    secs['export_secs'] = time.perf_counter() - begin
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'state.pt')
    begin = time.perf_counter()
    state = {'model': model.state_dict(), 'optimizer': optimizer.state_dict()}
    torch.save(state, path)
    secs['save_state_secs'] = time.perf_counter() - begin
    begin = time.perf_counter()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state['model'])
    optimizer.load_state_dict(state['optimizer'])
    side_torch.wait()
    secs['restore_state_secs'] = time.perf_counter() - begin
  return side_torch.measured(sum(secs.values()), size, 0.0, details=secs)


KINDS = {'files': files}

if __name__ == '__main__':
  job_lib.answer(sys.argv[1:], KINDS, job_lib.Job)
