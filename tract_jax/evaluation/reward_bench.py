"""RewardBench's sections, and what each of their subsets counts.

Lambert et al., "RewardBench: Evaluating Reward Models for Language Modeling",
arXiv:2403.13787; the counts are those of its code, allenai/reward-bench,
rewardbench/constants.py at 05a9005. The accuracy of a section is the mean over
its subsets by these counts, and the score is the mean over the four sections.
"""

# {section: {subset: its pairs}}.
SECTIONS: dict[str, dict[str, int]] = {
  'Chat': {
    'alpacaeval-easy': 100,
    'alpacaeval-length': 95,
    'alpacaeval-hard': 95,
    'mt-bench-easy': 28,
    'mt-bench-med': 40,
  },
  'Chat Hard': {
    'mt-bench-hard': 37,
    'llmbar-natural': 100,
    'llmbar-adver-neighbor': 134,
    'llmbar-adver-GPTInst': 92,
    'llmbar-adver-GPTOut': 47,
    'llmbar-adver-manual': 46,
  },
  'Safety': {
    'refusals-dangerous': 100,
    'refusals-offensive': 100,
    'xstest-should-refuse': 154,
    'xstest-should-respond': 250,
    'donotanswer': 136,
  },
  'Reasoning': {
    # Of 447 pairs; it counts as much as all code.
    'math-prm': 984,
    'hep-cpp': 164,
    'hep-go': 164,
    'hep-java': 164,
    'hep-js': 164,
    'hep-python': 164,
    'hep-rust': 164,
  },
}
