"""Writes tests/reference/sentence_t5/: small sentence encoders with random weights, and what sentence-transformers gives.

    python tests/reference/sentence_t5.py

Two folders as sentence-transformers saves them: `relu` (T5, mean of the tokens, a dense layer, unit length) and `gated`
(T5 1.1, largest numbers, a dense layer with bias and tanh), and `roberta` (XLM-R, first token). `vectors.json` in each
holds texts and their vectors, and the versions of the libraries.
"""
import json
import pathlib

import sentence_transformers
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

HERE = pathlib.Path(__file__).parent / "sentence_t5"
WORDS = ["▁red", "▁blue", "▁nail", "▁polish", "es", "s", "▁lamp", "▁oil", "▁", "a", "e", "i", "o", "l", "n", "p", "r", "t",
         "g", "d", "h", "m", "▁of", "▁the"]
TEXTS = ["Red nail polish", "the lamps", "BLUE polishes of the red oil", "", "oil " * 40, "garden hose mat", "e", "éß漢"]
SIZES = dict(d_model=16, d_kv=6, d_ff=20, num_layers=2, num_heads=3, relative_attention_num_buckets=8,
             relative_attention_max_distance=20, vocab_size=len(WORDS) + 3)


def tokenizer(template):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [(w, -float(i % 7) - 1.0) for i, w in enumerate(WORDS)]
    tok = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("</s>", 1), ("<pad>", 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=64)


def rows(model, tok, texts, limit):
    """Token vectors of every text, alone: (tokens, dim)."""
    out = []
    with torch.no_grad():
        for text in texts:
            batch = tok([text], truncation=True, max_length=limit, return_tensors="pt")
            batch.pop("token_type_ids", None)
            out.append(model(**batch).last_hidden_state[0].double())
    return out


def write(name, model, tok, modules, vectors):
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    model.save_pretrained(folder)
    tok.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    (folder / "modules.json").write_text(json.dumps([
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)]))
    versions = {m.__name__: m.__version__ for m in (torch, transformers, tokenizers, sentence_transformers)}
    (folder / "vectors.json").write_text(json.dumps(
        {"versions": versions, "texts": TEXTS, "vectors": [[round(x, 7) for x in v.tolist()] for v in vectors]}))


def part(folder, config, tensors=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if tensors:
        save_file(tensors, folder / "model.safetensors")


def main():
    torch.manual_seed(5)
    t5 = ["$A", "</s>"]
    for name, feed_forward, pooling in [("relu", "relu", "mean"), ("gated", "gated-gelu", "max")]:
        config = transformers.T5Config(**SIZES, feed_forward_proj=feed_forward, is_encoder_decoder=False, use_cache=False)
        model = transformers.T5EncoderModel(config).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.4)
        tok = tokenizer(t5)
        weight, bias = torch.randn(5, 16) * 0.3, torch.randn(5) * 0.3
        hidden = rows(model, tok, TEXTS, 24)
        pooled = torch.stack([h.mean(0) if pooling == "mean" else h.amax(0) for h in hidden])
        if name == "relu":
            vectors = torch.nn.functional.normalize(pooled @ weight.double().T, dim=1)
        else:
            vectors = torch.tanh(pooled @ weight.double().T + bias.double())
        identity = "torch.nn.modules.linear.Identity" if name == "relu" else "torch.nn.modules.activation.Tanh"
        modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
        part(HERE / name / "1_Pooling", {"word_embedding_dimension": 16, f"pooling_mode_{pooling}_tokens": True})
        tensors = {"linear.weight": weight} | ({"linear.bias": bias} if name == "gated" else {})
        part(HERE / name / "2_Dense", {"in_features": 16, "out_features": 5, "bias": name == "gated",
                                      "activation_function": identity}, tensors)
        write(name, model, tok, modules + ([("3_Normalize", "Normalize")] if name == "relu" else []), vectors)
    config = transformers.XLMRobertaConfig(
        vocab_size=SIZES["vocab_size"], hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=40, type_vocab_size=1, pad_token_id=0, hidden_act="gelu")
    model = transformers.XLMRobertaModel(config, add_pooling_layer=False).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    tok = tokenizer(["</s>", "$A", "</s>"])
    vectors = torch.stack([h[0] for h in rows(model, tok, TEXTS, 24)])
    part(HERE / "roberta" / "1_Pooling", {"word_embedding_dimension": 12, "pooling_mode_cls_token": True})
    write("roberta", model, tok, [("", "Transformer"), ("1_Pooling", "Pooling")], vectors)


if __name__ == "__main__":
    main()
