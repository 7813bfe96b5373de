import pytest

from unsloth_accel.fixes import packed_attention


@pytest.mark.gpu
def test_one_launch_computes_what_a_loop_over_documents_does() -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("needs compute capability 8.0")
    lengths, heads, kv_heads, size = [5, 64, 17], 8, 2, 64
    query, key, value = (
        torch.randn(sum(lengths), count, size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for count in (heads, kv_heads, kv_heads)
    )
    bounds = torch.tensor([0, 5, 69, 86], device="cuda", dtype=torch.int32)
    packed = packed_attention.varlen_with_grouped_heads(
        query, key, value, bounds, bounds, 64, 64, scale=None, window_size=(-1, 0), enable_gqa=True
    )
    looped = torch.cat(
        [
            scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(0, 1)
            for q, k, v in zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (query, key, value)), strict=True)
        ]
    )
    torch.testing.assert_close(packed, looped, rtol=2e-2, atol=2e-2)
    weights = torch.randn_like(packed)
    ours = torch.autograd.grad((packed * weights).sum(), (query, key, value))
    theirs = torch.autograd.grad((looped * weights).sum(), (query, key, value))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=5e-2, atol=5e-2)


def test_is_off_without_a_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    verdict = packed_attention.probe(None)
    assert not verdict.needed
    assert verdict.reason == "no GPU"
