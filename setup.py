"""Package data of tract_jax; `make venv` installs it with locked versions."""

import setuptools

_INSTALL_REQUIRES = [
  # Python 3.11 ends at jax 0.10 and flax 0.12.8; that flax does not work with
  # jax 0.11.1 and newer, so later Pythons take both together.
  'jax>=0.10.2,<0.11; python_version < "3.12"',
  'flax>=0.12.8,<0.12.9; python_version < "3.12"',
  'jax>=0.11.1,<0.13; python_version >= "3.12"',
  'flax>=0.12.9,<0.13; python_version >= "3.12"',
  'optax>=0.2.8,<0.3',
  'orbax-checkpoint>=0.12.3,<0.13',
  'grain>=0.2.18,<0.3',
  'transformers>=5.20,<6',
  'tokenizers>=0.23.1,<0.24',
  'huggingface-hub>=1.31,<3',
  'jinja2>=3.1.6,<4',
  'datasets>=5.0,<6',
  'regex>=2025.10.22',
  'safetensors>=0.8,<0.9',
  'gguf>=0.19,<0.20',
  'qwix>=0.1.8,<0.2',
  'numpy>=2.0,<3',
  'scipy>=1.14,<2',
  'absl-py>=2.3,<3',
  'ml-collections>=1.1,<2',
  'etils[epath]>=1.13,<2',
  'tensorboardX>=2.6.4,<3',
]

_GCS_REQUIRES = ['gcsfs>=2026.10']

_ANALYSES_REQUIRES = [
  'sacrebleu>=2.5,<3',
  'rapidfuzz>=3.13,<4',
]

_TEST_REQUIRES = [
  *_GCS_REQUIRES,
  *_ANALYSES_REQUIRES,
  'pytest>=9,<10',
  'pytest-timeout>=2.4,<3',
  'pytest-xdist>=3.8,<4',
  'hypothesis>=6.140,<7',
  'chex>=0.1.91,<0.2',
  'mypy>=2,<3',
  'ruff>=0.17,<0.18',
  # Tests of parity with PyTorch want its CPU build, too: see
  # requirements/torch.txt.
]

setuptools.setup(
  name='tract_jax',
  version='0.1.0',
  description=(
    'TRACT in JAX: regression-aware fine-tuning of LLM judges that reason'
  ),
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['tract_jax', 'tract_jax.*']),
  install_requires=_INSTALL_REQUIRES,
  extras_require={
    'tpu': ['jax[tpu]'],
    'gpu': ['jax[cuda13]'],
    'gcs': _GCS_REQUIRES,
    'wandb': ['wandb>=0.31,<0.32'],
    'analyses': _ANALYSES_REQUIRES,
    'test': _TEST_REQUIRES,
  },
)
