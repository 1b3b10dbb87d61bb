from hf_robust.reports.style import STYLES, loss_styles


def test_many_losses_are_told_apart():
    losses = [*STYLES, *(f"gce(q=0.{i})" for i in range(1, 30))]
    styles = loss_styles(losses)
    assert list(styles) == losses
    assert len(set(styles.values())) == len(losses)
    few = loss_styles(["ce", "nfl + rce", "nfl+mae"])
    assert len({colour for colour, _ in few.values()}) == 3
