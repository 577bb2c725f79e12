"""Policy-gradient methods for language models, from the theorem to PPO on GPT-2.

Every function works on batch-first tensors and keeps one spelling per idea:

    symbol                 variable          shape    meaning
    ------                 --------          -----    -------
    s                      inputs            policy's what the actions are conditioned on (for GPT-2: `Prompts`)
    a_t                    actions           [B, T]   the chosen actions (for GPT-2: token ids)
    m_t                    mask              [B, T]   1 = this action counts, 0 = it came after the end
    log pi_theta(a_t|s_t)  logprobs          [B, T]   under the policy being trained
    log pi_old(a_t|s_t)    old_logprobs      [B, T]   under the policy that sampled
    log pi_ref(a_t|s_t)    ref_logprobs      [B, T]   under the frozen reference
    rho_t                  ratio             [B, T]   exp(logprobs - old_logprobs)
    R(s, a)                scores            [B]      one number per response, from the reward
    r_t                    rewards           [B, T]   one number per action
    V(s_t)                 values            [B, T]   the critic's guess of the return
    G_t                    returns           [B, T]   discounted sum of rewards from t on
    A_t                    advantages        [B, T]   returns minus what was expected
    gamma, lambda          gamma, lam        scalar   discount, and the GAE mixing weight
    beta                   kl_coef           scalar   price of one nat of KL to the reference
    epsilon                clip_eps          scalar   how far the ratio may move and still be paid for

Dimensions: B batch, T actions, P prompt tokens, V vocabulary. Log-probabilities, entropies and KL are in nats.
"""

__version__ = "0.1.0"
