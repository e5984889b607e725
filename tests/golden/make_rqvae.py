"""Writes ../reference/rqvae.safetensors: what PyTorch says of small RQ-VAEs, for rqvae/src/model/parity_tests.rs.

    pip install torch safetensors
    python tests/golden/make_rqvae.py

Autograd here, derivatives by hand there. Every case has its tensors under `CASE.`: `weight.*` before training, `x`,
`latent`, `codes`, `quantized`, `reconstruction`, `terms` (reconstruction, commitment, codebook, contrast, alignment,
each summed over rows and before its weight), `grad.*` of the first loss, `losses` of ten AdamW steps on the same rows,
`after.*` behind them. Codebooks are weights too, called `codebook.LEVEL`. The versions used are in the metadata.
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file

ROWS, CONTENT, LATENT, HIDDEN, BETA = 24, 5, 3, [7, 6], 0.4
LEARNING_RATE, WEIGHT_DECAY, STEPS, DECAY = 1e-2, 0.05, 10, 0.9
TEMPERATURE, CONTRAST_TEMPERATURE = 0.8, 0.5

torch.manual_seed(5)
torch.use_deterministic_algorithms(True)


def tower(widths):
    layers = []
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        layers.append(torch.nn.Linear(a, b))
        if i < len(widths) - 2:
            layers.append(torch.nn.ReLU())
    return torch.nn.Sequential(*layers)


def linears(sequence):
    return [layer for layer in sequence if isinstance(layer, torch.nn.Linear)]


class RqVae(torch.nn.Module):
    def __init__(self, sources, sizes):
        super().__init__()
        self.sources = sources
        self.encoders = torch.nn.ModuleList(tower([w, *HIDDEN, LATENT]) for w in sources)
        self.decoders = torch.nn.ModuleList(tower([LATENT, *HIDDEN[::-1], w]) for w in sources)
        self.fuse = torch.nn.Linear(len(sources) * LATENT, LATENT) if len(sources) > 1 else None
        self.codebooks = torch.nn.ParameterList(torch.rand(size, LATENT) - 0.5 for size in sizes)

    @torch.no_grad()
    def spread(self, x):
        """Weights and codewords that tell the rows of x apart."""
        for parameter in self.parameters():
            parameter.mul_(2.5)
        running = self.encode(x)
        for codebook in self.codebooks:
            codebook.copy_(running[: len(codebook)] + 0.1 * torch.randn_like(codebook))
            running = running - codebook[torch.cdist(running, codebook).argmin(1)]

    def encode(self, x):
        latents = [e(part) for e, part in zip(self.encoders, x.split(self.sources, 1))]
        return latents[0] if self.fuse is None else self.fuse(torch.cat(latents, 1))

    def decode(self, z):
        return torch.cat([d(z) for d in self.decoders], 1)

    def named(self):
        found = {}
        for what, towers in [("encoder", self.encoders), ("decoder", self.decoders)]:
            for at, sequence in enumerate(towers):
                name = what if len(towers) == 1 else f"{what}.{at}"
                for i, layer in enumerate(linears(sequence)):
                    found[f"{name}.{i}.weight"], found[f"{name}.{i}.bias"] = layer.weight, layer.bias
        if self.fuse is not None:
            found["encoder.fuse.0.weight"], found["encoder.fuse.0.bias"] = self.fuse.weight, self.fuse.bias
        return found | {f"codebook.{level}": book for level, book in enumerate(self.codebooks)}


def squares(a, b):
    return ((a - b) ** 2).sum(1)


def rotate(z, q):
    """q, as the latent z turned and scaled; the turn is a constant."""
    e, u = z.detach() / z.detach().norm(dim=1, keepdim=True), q / q.norm(dim=1, keepdim=True)
    r = (e + u) / (e + u).norm(dim=1, keepdim=True)
    turned = z - 2 * r * (r * z).sum(1, keepdim=True) + 2 * u * (e * z).sum(1, keepdim=True)
    return turned * q.norm(dim=1, keepdim=True) / z.detach().norm(dim=1, keepdim=True)


def info_nce(anchors, keys, same):
    logits = torch.nn.functional.normalize(anchors, dim=1) @ torch.nn.functional.normalize(keys, dim=1).T
    logits = (logits / CONTRAST_TEMPERATURE).masked_fill(same & ~torch.eye(len(anchors), dtype=bool), -torch.inf)
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(anchors)), reduction="sum")


def forward(model, case, noise):
    x, depths = case["x"], case.get("depths")
    z = model.encode(x)
    running, total, commitment, book = z, torch.zeros_like(z), 0.0, 0.0
    codes, residuals = [], []
    for level, codebook in enumerate(model.codebooks):
        counts = torch.ones(ROWS) if depths is None else (depths > level).float()
        distance = torch.cdist(running, codebook, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        residuals.append(running.detach())
        if noise is None:
            code = distance.argmin(1)
            chosen = codebook[code]
        else:
            variance = distance.detach().min(1).values.sum() / running.numel()
            shares = torch.softmax((noise[level] - distance / (2 * variance)) / TEMPERATURE, 1)
            code, chosen = shares.argmax(1), shares @ codebook
        codes.append(code)
        commitment = commitment + (counts * squares(running, chosen.detach())).sum()
        book = book + (counts * squares(running.detach(), chosen)).sum()
        total = total + counts[:, None] * chosen
        running = running - (chosen if noise is not None else chosen.detach())
    if noise is not None:
        through = total
    elif case.get("rotation"):
        through = rotate(z, total.detach())
    else:
        through = z + (total - z).detach()
    reconstruction = model.decode(through)
    terms = [squares(reconstruction, x).sum(), commitment, book, torch.zeros(()), torch.zeros(())]
    if "pairs" in case:
        items, (a, k) = case["items"], case["pairs"].T
        same = (items[k][None] == items[k][:, None]) | (items[k][None] == items[a][:, None])
        terms[3] = info_nce(through[a], through[k], same)
        known = (case["collaborative"] != 0).any(1).nonzero()[:, 0]
        same = items[known][None] == items[known][:, None]
        terms[4] = info_nce(through[known], case["collaborative"][known], same)
    return terms, z, torch.stack(codes, 1), total, reconstruction, residuals


def train(name, case, sources=(CONTENT,), sizes=(4, 4), weights=(0.0, 0.0), averages=False, gumbel=False):
    model = RqVae(list(sources), sizes)
    case["x"] = torch.rand(ROWS, CONTENT) * 2 - 1
    model.spread(case["x"])
    case["weights"] = torch.tensor(weights)
    uniform = [torch.rand(STEPS, ROWS, size) for size in sizes]
    noise = [-(-u.clamp_min(1e-20).log()).clamp_min(1e-20).log() for u in uniform]
    named = model.named()
    case |= {f"weight.{k}": v.detach().clone() for k, v in named.items()}
    books = [p for k, p in named.items() if k.startswith("codebook")]
    others = [p for k, p in named.items() if not k.startswith("codebook")]
    groups = [{"params": others, "weight_decay": WEIGHT_DECAY}]
    if not averages:
        groups.append({"params": books, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    counts, sums = [torch.ones(size) for size in sizes], [b.detach().clone() for b in books]
    losses = []
    for step in range(STEPS):
        drawn = [level[step] for level in noise] if gumbel else None
        terms, z, codes, total, reconstruction, residuals = forward(model, case, drawn)
        rec, commitment, book, contrast, alignment = terms
        loss = rec + BETA * commitment + weights[0] * contrast + weights[1] * alignment
        loss = (loss if averages else loss + book) / ROWS
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            case |= {"latent": z.detach(), "codes": codes, "quantized": total.detach()}
            case |= {"reconstruction": reconstruction.detach(), "terms": torch.stack(terms).detach()}
            learned = {k: p for k, p in named.items() if not (averages and k.startswith("codebook"))}
            case |= {f"grad.{k}": p.grad.clone() for k, p in learned.items()}
        optimizer.step()
        losses.append(loss.item())
        if averages:
            update(books, counts, sums, codes, residuals, case.get("depths"))
    case |= {f"after.{k}": v.detach().clone() for k, v in named.items()}
    case["losses"] = torch.tensor(losses)
    if averages:
        # Codeword 1 of level 0 starts anew at the first row's residual; then one more update.
        with torch.no_grad():
            books[0][1] = residuals[0][0]
        counts[0][1], sums[0][1] = 1.0, residuals[0][0]
        update(books, counts, sums, codes, residuals, case.get("depths"))
        case |= {f"restarted.codebook.{level}": b.detach().clone() for level, b in enumerate(books)}
        case["restart"] = residuals[0][0].clone()
    if gumbel:
        case |= {f"noise.{level}": n for level, n in enumerate(noise)}
    print(name, [round(x, 4) for x in losses], "codes used", [len(set(c.tolist())) for c in codes.T])
    return {f"{name}.{k}": v.contiguous() for k, v in case.items() if isinstance(v, torch.Tensor)}


@torch.no_grad()
def update(books, counts, sums, codes, residuals, depths):
    for level, book in enumerate(books):
        takes_part = torch.ones(ROWS) if depths is None else (depths > level).float()
        chosen = torch.nn.functional.one_hot(codes[:, level], len(book)).float() * takes_part[:, None]
        counts[level].mul_(DECAY).add_((1 - DECAY) * chosen.sum(0))
        sums[level].mul_(DECAY).add_((1 - DECAY) * chosen.T @ residuals[level])
        alive = counts[level] > 1e-2
        book[alive] = (sums[level] / counts[level][:, None])[alive]


def all_additions():
    items = torch.arange(ROWS) * 7 % 20
    pairs = torch.stack([torch.arange(8), torch.arange(16, 24)], 1)
    collaborative = torch.randn(20, LATENT)
    collaborative[1::2] = 0
    return {
        "items": items, "pairs": pairs, "depths": torch.arange(ROWS) % 2 + 1, "collaborative": collaborative[items],
    }


def sinkhorn():
    """Codes of even use: 50 rounds of row and column scaling in double precision."""
    residuals, codebook = torch.rand(40, LATENT), torch.rand(5, LATENT)
    distance = (torch.cdist(residuals, codebook, compute_mode="donot_use_mm_for_euclid_dist") ** 2).double()
    unit = (distance.max() - distance.min()) / 2 * 0.05
    kernel = torch.exp(-(distance - distance.min(1, keepdim=True).values) / unit)
    rows, columns = torch.ones(40, dtype=torch.double), torch.ones(5, dtype=torch.double)
    for _ in range(50):
        columns = 40 / 5 / (rows @ kernel)
        rows = 1 / (kernel @ columns)
    return {"sinkhorn.residuals": residuals, "sinkhorn.codebook": codebook, "sinkhorn.codes": (kernel * columns).argmax(1)}


def diversity():
    """LETTER's diversity of one codebook with given partners."""
    codebook = (torch.rand(6, LATENT) - 0.5).requires_grad_()
    counts, partners = torch.tensor([3.0, 0, 1, 5, 2, 1]), torch.tensor([2, 0, 0, 4, 3, 1])
    scores = (codebook @ codebook.T).masked_fill(torch.eye(6, dtype=bool), -torch.inf)
    loss = (counts * torch.nn.functional.cross_entropy(scores, partners, reduction="none")).sum()
    loss.backward()
    return {
        "diversity.codebook": codebook.detach(), "diversity.counts": counts, "diversity.partners": partners,
        "diversity.loss": loss.detach()[None], "diversity.grad": codebook.grad,
    }


out = train("gradient", {})
out |= train("averages", {}, averages=True)
out |= train("rotation", {"rotation": True})
out |= train("gumbel", {}, gumbel=True)
out |= train("sources", all_additions(), sources=(2, 3), sizes=(5, 3), weights=(0.7, 0.6), averages=True)
out |= sinkhorn() | diversity()
path = pathlib.Path(__file__).parent.parent / "reference" / "rqvae.safetensors"
save_file(out, path, metadata={"torch": torch.__version__, "python": sys.version.split()[0], "format": "pt"})
print(path, path.stat().st_size, "bytes")
