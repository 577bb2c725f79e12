"""Checks for the exercises: each takes your function, compares it with an answer found another way, names the mistake.

A check prints one line when the exercise is right or not attempted yet, and raises AssertionError when it is wrong.
`progress()` shows how far you are.
With RLCOURSE_STRICT=1 in the environment an unattempted exercise is an error too.
"""

from rlcourse.checks.n00 import (
    check_bigram_policy,
    check_chosen_logprobs,
    check_expected_reward,
    check_negative_log_likelihood,
)
from rlcourse.checks.n01 import (
    check_bandit_gradient,
    check_expected_return,
    check_gradient_estimates,
    check_softmax_score,
)
from rlcourse.checks.n02 import check_broken_loss, check_gradient_reaches, check_reinforce_loss
from rlcourse.checks.n03 import check_best_constant, check_leave_one_out, check_loss_with_baseline, check_text_weights
from rlcourse.checks.n04 import (
    check_discounted_reward_to_go,
    check_next_token_gradient,
    check_paid_as_it_grows,
    check_potential_shaping,
)
from rlcourse.checks.n05 import check_clip_gradient, check_epoch_kls, check_several_steps, check_token_ratio
from rlcourse.checks.n06 import check_action_logprobs, check_k3, check_positions, check_response_mask
from rlcourse.checks.n07 import check_clipped_surrogate_loss, check_gae, check_kl_shaped_rewards, check_reward
from rlcourse.checks.n08 import check_bradley_terry, check_last_state, check_lower_bound, check_soft_labels
from rlcourse.checks.n09 import check_blocked_logprobs, check_coverage_score, check_f_score, check_gated_scores
from rlcourse.checks.n10 import check_cheapest_label, check_class_f1, check_logged_value, check_paid_choice
from rlcourse.checks.n11 import check_double_estimate, check_epsilon_greedy, check_td_targets, check_text_targets
from rlcourse.checks.n12 import check_best_of_n, check_group_advantages, check_ipo_loss, check_priced_loss
from rlcourse.checks.n13 import check_alarms, check_price_paid, check_surprise_gap, check_whitened
from rlcourse.checks.n14 import check_draw, check_memory, check_part, check_pooled
from rlcourse.checks.verdict import progress
