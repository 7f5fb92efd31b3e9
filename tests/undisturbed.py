"""Looks at speed on a machine that does other things too."""


def undisturbed(look, is_well, tries=5):
    """What `look()` finds. Where that is not well, it looks again: what was too slow because another program had the
    processor will not be so each time, what is too slow by itself will."""
    for _ in range(tries):
        if is_well(found := look()):
            break
    return found
