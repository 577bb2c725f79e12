"""Checks for the exercises: each takes your function, compares it with an answer found another way, names the mistake.

A check prints one line when the exercise is right or not attempted yet, and raises AssertionError when it is wrong.
With RLCOURSE_STRICT=1 in the environment an unattempted exercise is an error too.
"""

from rlcourse.checks.n06 import check_action_logprobs, check_k3, check_positions, check_response_mask
from rlcourse.checks.n07 import check_clipped_surrogate_loss, check_gae, check_kl_shaped_rewards, check_reward
