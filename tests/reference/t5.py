"""Writes t5.safetensors: what Hugging Face's T5 says of a small TIGER, for tiger_parity.rs.

    pip install torch transformers safetensors
    python tests/reference/t5.py

Tensors carry the names of our parameters. `weight.*` before training, `grad.*` of the first loss, `after.*` after ten
AdamW steps on the same batch with clipping, `losses` of these steps, `logits.L` of level L, `history` and `target` as
item numbers (-1 pads), `codes` of all items.
"""

import pathlib

import torch
from safetensors.torch import save_file
from transformers import T5Config, T5ForConditionalGeneration

DIM, HEADS, HEAD_DIM, HIDDEN, LAYERS = 16, 2, 6, 24, 2
SIZES = [5, 6, 4]
ITEMS, SAMPLES, CAP = 40, 9, 5

torch.manual_seed(3)
starts = [0]
for size in SIZES:
    starts.append(starts[-1] + size)
separator, start = starts[-1], starts[-1] + 1
codes = torch.tensor([[i % 5, (i // 5) % 6, i // 30] for i in range(ITEMS)])
tokens = codes + torch.tensor(starts[:-1])

history = torch.full((SAMPLES, CAP), -1)
for row in range(SAMPLES):
    length = 1 + row % CAP
    history[row, :length] = torch.randint(0, ITEMS, (length,))
target = torch.randint(0, ITEMS, (SAMPLES,))

width = len(SIZES) + 1
encoder_ids = torch.zeros(SAMPLES, CAP * width, dtype=torch.long)
mask = torch.zeros(SAMPLES, CAP * width, dtype=torch.long)
for row in range(SAMPLES):
    flat = [t for item in history[row].tolist() if item >= 0 for t in tokens[item].tolist() + [separator]]
    encoder_ids[row, : len(flat)] = torch.tensor(flat)
    mask[row, : len(flat)] = 1
decoder_ids = torch.cat([torch.full((SAMPLES, 1), start), tokens[target][:, :-1]], 1)

model = T5ForConditionalGeneration(
    T5Config(
        vocab_size=start + 1, d_model=DIM, d_kv=HEAD_DIM, d_ff=HIDDEN, num_layers=LAYERS, num_decoder_layers=LAYERS,
        num_heads=HEADS, dropout_rate=0.0, feed_forward_proj="relu", tie_word_embeddings=True, pad_token_id=0,
        decoder_start_token_id=start, relative_attention_num_buckets=32, relative_attention_max_distance=128,
    )
)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.mul_(1.0).add_(0.1 * torch.randn_like(parameter))


def by_our_names(of):
    """`of(parameter)` for every parameter, keys and values joined as ours are."""
    found = {"tokens": of(model.shared.weight)}
    for name, stack in [("encoder", model.encoder), ("decoder", model.decoder)]:
        found[f"{name}_norm.weight"] = of(stack.final_layer_norm.weight)
        bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias
        found[f"{name}_bias.weight"] = of(bias.weight)
        for i, block in enumerate(stack.block):
            parts = [("attention", block.layer[0], "SelfAttention")]
            if name == "decoder":
                parts.append(("memory", block.layer[1], "EncDecAttention"))
            for ours, layer, theirs in parts:
                attention = getattr(layer, theirs)
                found[f"{name}.{i}.{ours}_norm.weight"] = of(layer.layer_norm.weight)
                found[f"{name}.{i}.{ours}.q.weight"] = of(attention.q.weight)
                found[f"{name}.{i}.{ours}.kv.weight"] = torch.cat([of(attention.k.weight), of(attention.v.weight)])
                found[f"{name}.{i}.{ours}.o.weight"] = of(attention.o.weight)
            last = block.layer[-1]
            found[f"{name}.{i}.feed_forward_norm.weight"] = of(last.layer_norm.weight)
            found[f"{name}.{i}.feed_forward.wi.weight"] = of(last.DenseReluDense.wi.weight)
            found[f"{name}.{i}.feed_forward.wo.weight"] = of(last.DenseReluDense.wo.weight)
    return {key: value.detach().clone().contiguous() for key, value in found.items()}


def run():
    logits = model(input_ids=encoder_ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
    levels = [logits[:, level, starts[level] : starts[level + 1]] for level in range(len(SIZES))]
    losses = [torch.nn.functional.cross_entropy(x, codes[target][:, level]) for level, x in enumerate(levels)]
    return levels, sum(losses)


out = {"history": history, "target": target, "codes": codes}
out |= {f"weight.{k}": v for k, v in by_our_names(lambda p: p).items()}
levels, loss = run()
out |= {f"logits.{level}": x.detach().contiguous() for level, x in enumerate(levels)}
loss.backward()
out |= {f"grad.{k}": v for k, v in by_our_names(lambda p: p.grad).items()}

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
losses = []
for _ in range(10):
    optimizer.zero_grad()
    _, loss = run()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append(loss.item())
out["losses"] = torch.tensor(losses)
out |= {f"after.{k}": v for k, v in by_our_names(lambda p: p).items()}
path = pathlib.Path(__file__).with_name("t5.safetensors")
save_file(out, path)
print(path, path.stat().st_size, "bytes, losses", [round(x, 4) for x in losses])
