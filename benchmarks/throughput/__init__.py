"""Speed and memory of our training beside TRL's, on the same examples, step for step.

    python -m benchmarks.throughput            # everything: under 30 minutes on 2 cores
    python -m benchmarks.throughput --quick    # 3 minutes: the small Llama, little data; writes nothing
    python -m benchmarks.throughput --losses dpo --profiles hh --peers trl-best --pairs 9    # a choice

**What is the same.** Both sides train the same model from the same weights on the same examples in the same order: sft,
dpo (beta 0.1) and kto (beta 0.1); global batches of 8 examples (4 where sequences are long, 2 with the larger model);
float32; no dropout; AdamW with the same settings, a constant learning rate and the same clipping; the same number of
threads; denormal numbers flushed to zero. No sequence reaches the limits of 1024 tokens (512 of the prompt) at which
either side would cut it. The token ids of each example, the number of tokens of each step and, for sft and dpo, the
loss of the first steps must agree, else the run fails. KTO's losses differ by definition and are only printed: its KL
term is estimated over the mismatched responses of a global batch here, over other ones and a microbatch at a time in
TRL.

**Data and models.** Words are made up and each is one token; lengths are log-normal. Half of all sequences have at most
as many tokens as those of a known dataset have: `ultrafeedback` 409, `hh` 186, `tldr` 416, of which 0.42, 2.15 and 11.1
times as many in the prompt as in the response. `llama` has 19M parameters and a vocabulary of 32,000, `smollm2` the
shape of SmolLM2-135M. Their weights are random: speed does not depend on them.

**Peers.** `trl-default` has TRL's defaults (gradient checkpointing on; the reference in memory, run at each step; the
global batch as one microbatch). `trl-precomputed`, which runs when asked for, differs by the reference alone, computed
before the training. `trl-best` has what is fastest on a CPU: no gradient checkpointing, the reference computed before
the training, and the microbatch that was fastest when tried. `trl-packing`, for sft, is trl-best with TRL's packing
(best fit decreasing, to 1024 tokens; a mask keeps examples from seeing each other): its batches hold other examples, so
tokens a second are compared and losses are not. On a CPU TRL computes the logits of the prompt, too, a chunk at a time;
on a GPU its kernel leaves them out, as we do everywhere.

**Times.** Each side lives in a process of its own. They take turns, forwards and backwards, while the idle ones sleep.
A step's time holds all that it takes: loading its data, forward, backward, the optimiser, its log. A ratio is of the
same step of both, so that a machine that others use as well slows both; the median counts, and so the first step, which
warms up, does not. TRL runs its own `train()`, we `Trainer.step`. The reference's time is apart: ours covers the whole
store with its two test prompts and includes hashing and writing it, TRL's its training set.

Prints each step and writes benchmarks/results/throughput.csv, and docs/throughput.svg from it. Columns: loss, profile,
model, peer; ratio_examples_per_s (ours over TRL's, median of pairs), ratio_min, ratio_max; ratio_peak_memory (ours over
TRL's, of the most memory that the process had resident at once, imports included; baseline_memory_gb is the same before
the trainer is made); pairs; then both sides' own figures (GB are 1e9 bytes; tokens are real ones, a pair's
prompt counted twice); loss_value and peer_loss_value of the last step; batch, the global batch; peer_setting;
peak_gflops, what the machine did in float32 products of 2048 x 2048 matrices between the pairs; useful_share, the
operations that our step cannot do without, over its time and that peak, each token counted once; useful_share_unshared,
the same with the prompt counted for each of its responses, as an implementation without prefix sharing has to; date,
cpu, threads, versions.
"""
