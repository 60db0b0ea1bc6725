"""The explorer in a real browser: what it shows equals the tensors, and every way of using it works."""

import json
import re

import pytest
import torch

from minip2p import Add, LocalBlend, Reweight, Swap, explore

HOUSE = ["a red house on a road", "a red castle on a road"]
NIGHT = ["a dog on the grass", "a dog on the grass at night"]
CATS = ["a cat on the grass", "a dog on the grass", "a red cat on the grass", "a cat"]
EVIL = ["a 🐱 <script>name=1", 'a "& </script><script>name=1']  # within the toy's context of 32 tokens
STEPS, QUIET = 10, {"progress": False}


@pytest.fixture(scope="session")
def pages(toy, tmp_path_factory):
    """(result, edit, file) by name; each is made once, when a test first asks for it."""
    folder, made = tmp_path_factory.mktemp("pages"), {}

    def swap(tokenizer):
        blend = LocalBlend(tokenizer, HOUSE, [["house"], ["castle"]])
        return Swap(tokenizer, HOUSE, {"castle": (0.2, 0.8), "default_": 0.6}, 0.5, blend)

    makers = {
        "swap": (HOUSE, swap, "all"),
        "kept maps": (HOUSE, swap, True),
        "night": (NIGHT, lambda tokenizer: Reweight(tokenizer, NIGHT, {"night": -2.0}, cross_replace_steps=1.0), "all"),
        "cats": (CATS, lambda tokenizer: Add(tokenizer, CATS), "all"),
        "evil": (EVIL, lambda tokenizer: Add(tokenizer, EVIL), "all"),
        "one": (["cat"], lambda tokenizer: None, True),
        "no edit": (HOUSE, lambda tokenizer: None, True),
        "blend alone": (HOUSE, lambda tokenizer: LocalBlend(tokenizer, HOUSE, ["house", "castle"], start=0.5), True),
    }

    def page(name: str):
        if name not in made:
            prompts, make, record = makers[name]
            edit = make(toy.tokenizer)
            result = toy.generate(prompts, seed=3, steps=STEPS, edit=edit, record=record, **QUIET)
            file = folder / f"{name.replace(' ', '-')}.html"
            file.write_text(explore(toy, result, edit), encoding="utf-8")
            made[name] = result, edit, file
        return made[name]

    return page


def number(text: str) -> float:
    """The first percentage in a text, as a share."""
    return float(re.search(r"(-?[\d.]+)\s?%", text.replace("\u2212", "-"))[1]) / 100


def share(maps, prompt: int, positions: list[int], step: int | None, size=None) -> float:
    cells = maps.tokens(prompt, size)[..., positions].sum(-1)
    return (cells.mean() if step is None else cells[step]).mean().item()


def go(browser, file, **state) -> None:
    """Opens the page at an address that holds a state."""
    browser.open(f"{file.as_uri()}#{'&'.join(f'{key}={value}' for key, value in state.items())}")


def caption(browser) -> list[str]:
    return browser.texts("#say p")


def word(browser, row: int, unit: int):
    return browser.find_all(".row")[row].find_elements("css selector", ".word")[unit]


def press(browser, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        ActionChains(browser.driver).send_keys(getattr(Keys, key, key)).perform()


def focused(browser) -> str:
    return browser.run("const at = document.activeElement; return at.getAttribute('aria-label') || at.textContent || at.id")


def settings(browser) -> dict:
    """The state in the address, which is written a moment after a change."""
    browser.wait("return saving === 0 || location.hash.includes('word=')")
    return dict(pair.split("=") for pair in browser.run("save(); return location.hash.slice(1)").split("&"))


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("name, view", [("swap", "after"), ("swap", "before"), ("night", "after"), ("kept maps", "after")])
@pytest.mark.parametrize("step", [None, 3])
def test_shares_and_cells_on_the_page(name, view, step, browser, pages, toy):
    result, _, file = pages(name)
    maps = result.maps if view == "after" else result.own_maps
    for i, size in enumerate(result.maps.sizes[:2]):
        go(browser, file, view=view, step=step or "mean", size=f"{size[0]}x{size[1]}")
        index = None if step is None else step - 1
        for prompt, text in enumerate(result.prompts):
            shown = [number(text) for text in browser.texts(f".line:nth-of-type({1 + prompt}) .share")]
            words = toy.tokenizer.words(text)
            assert shown == pytest.approx([share(maps, prompt, positions, index, size) for _, positions in words], abs=6e-4)

            row, column = size[0] // 2, size[1] // 3
            browser.run(
                "const canvas = document.querySelectorAll('.pane canvas')[arguments[0]], box = canvas.getBoundingClientRect();"
                "const [row, column, height, width] = arguments[1];"
                "canvas.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + (column + 0.5) / width * box.width,"
                "  clientY: box.top + (row + 0.5) / height * box.height}))",
                prompt, [row, column, *size],
            )  # fmt: skip
            [said] = browser.texts("#cell")
            assert said.startswith(f"Row {row + 1}, column {column + 1}:")
            cells = maps.tokens(prompt, size)
            cell = (cells.mean(0) if index is None else cells[index])[row, column]
            each = {word: cell[positions].sum().item() for word, positions in words if [w for w, _ in words].count(word) == 1}
            for word_, value in each.items():
                if f" {word_} " in said:
                    top = cells.abs().max().item()
                    assert number(said.split(f" {word_} ")[1]) == pytest.approx(value, abs=0.012 * max(top, 1))


def test_every_caption_is_true(browser, pages, toy):
    """At every step and for every word of the target: it takes the source's map if and only if the tensors say so."""
    result, edit, file = pages("swap")
    go(browser, file)
    source, target = (toy.tokenizer.words(prompt) for prompt in HOUSE)
    for step in range(STEPS):
        maps = [result.maps.tokens(prompt)[step] for prompt in (0, 1)]
        own = result.own_maps.tokens(1)[step]
        for unit, (name, positions) in enumerate(target):
            browser.run("hovered = null; state.word = {prompt: 1, unit: arguments[0]}; show(arguments[1])", unit, step)
            first, *others = caption(browser)
            taken = maps[0] @ edit.mapper[0][:, positions].sum(1)
            drawn = maps[1][..., positions].sum(-1)
            is_source, is_own = (torch.allclose(drawn, each, atol=1e-3) for each in (taken, own[..., positions].sum(-1)))
            assert first.startswith(f"Step {step + 1} of {STEPS}: ")
            says_source = " takes " in first
            assert says_source or "own map" in first
            assert is_source if says_source else is_own
            if says_source:
                old = source[unit][0]
                assert f"the map of “{old}”" in first if old != name else "its map from the source" in first
            low = edit.at(step, STEPS).self_open
            assert any(("the source's" if low else "the target's own now") in text for text in others)
            covered = result.masks[step, 0].mean().item()
            [blend] = [text for text in others if "blend" in text]
            assert number(blend) == pytest.approx(covered, abs=6e-3)
            assert ("starts at step" in blend) == (not edit.blend.at(step, STEPS).active)


def test_captions_of_new_words_negative_weights_and_means(browser, pages):
    _, _, file = pages("night")
    go(browser, file, word="1.6", step=3)
    first, *others = caption(browser)
    assert first == f"Step 3 of {STEPS}: “night” is new and draws with its own map, times −2."
    assert any("below zero" in text for text in others)
    assert browser.texts(".word.current .weight") == ["×\u2009−2"]
    go(browser, file, word="1.5", step="mean")
    assert caption(browser)[0] == f"Mean over {STEPS} steps: “at” is new and draws with its own map."
    go(browser, pages("swap")[2], word="1.2", step="mean")
    assert caption(browser)[0].endswith(
        "“castle” takes the map of “house” in steps 3 to 8, and draws with its own map in steps 1 to 2 and steps 9 to 10."
    )


def test_a_page_opens_at_the_word_that_matters(browser, pages, toy):
    for name, expected in (("swap", "castle"), ("night", "night"), ("one", "cat")):
        browser.open(pages(name)[2])
        assert f"“{expected}”" in caption(browser)[0]
    result, _, file = pages("no edit")
    browser.open(file)
    words = toy.tokenizer.words(HOUSE[1])
    largest = max(words, key=lambda word: share(result.maps, 1, word[1], None))[0]
    assert f"“{largest}”" in caption(browser)[0]


def test_alignment_lines_have_their_weights(browser, pages):
    _, edit, file = pages("swap")
    go(browser, file, word="1.2")
    assert len(browser.find_all("#lines path")) == 6
    assert browser.texts("#lines text.chosen") == ["1"]
    assert browser.texts(".word.partner .label") == ["house"]
    go(browser, file, units="tokens", word="0.3")  # "house", one token, goes to the two of "castle"
    assert sorted(browser.texts("#lines text.chosen")) == ["0.5", "0.5"]
    assert browser.texts(".word.partner .label") == ["cast", "le"]
    ends = browser.run(
        "const path = document.querySelector('#lines path.chosen'), box = path.getBoundingClientRect();"
        "const middle = each => { const own = each.getBoundingClientRect(); return own.left + own.width / 2 };"
        "return [box.left, box.right, ...['.current', '.partner'].map(name => middle(document.querySelector(name)))]"
    )
    assert min(ends[2:]) == pytest.approx(ends[0], abs=3) and max(ends[2:]) == pytest.approx(ends[1], abs=3)


# ---------------------------------------------------------------- use


def test_mouse(browser, pages):
    from selenium.webdriver.common.action_chains import ActionChains

    browser.open(pages("swap")[2])
    ActionChains(browser.driver).move_to_element(word(browser, 0, 5)).perform()
    assert "“road”" in caption(browser)[0] and browser.texts(".word.partner .label") == ["road"]
    ActionChains(browser.driver).move_to_element(browser.find("h1")).perform()
    assert "“castle”" in caption(browser)[0]  # back to the chosen word
    ActionChains(browser.driver).click(word(browser, 1, 1)).move_to_element(browser.find("h1")).perform()
    assert "“red”" in caption(browser)[0] and settings(browser)["word"] == "1.1"
    ActionChains(browser.driver).click(word(browser, 1, 1)).move_to_element(word(browser, 0, 2)).perform()  # again: hold
    assert len(browser.find_all(".pane")) == 4 and any("Held beside it: “red”" in text for text in caption(browser))
    ActionChains(browser.driver).click(browser.find("#hold")).perform()
    assert len(browser.find_all(".pane")) == 2


def test_keyboard(browser, pages):
    browser.open(pages("swap")[2])
    press(browser, "TAB")
    assert focused(browser).startswith("house, ")  # the partner of the chosen word
    press(browser, "ARROW_LEFT")
    assert focused(browser).startswith("red, ") and "“red” looks here in the source" in caption(browser)[0]
    press(browser, "ARROW_DOWN")
    assert settings(browser)["word"] == "1.1"
    press(browser, "END", "HOME", "ARROW_RIGHT", "ARROW_RIGHT", "ENTER")
    assert settings(browser)["held"] == "1.2"
    press(browser, "ESCAPE")
    assert "held" not in settings(browser)
    seen = []
    browser.run("document.querySelector('.line.target [tabindex=\"0\"]').focus()")
    for _ in range(5):
        press(browser, "TAB")
        seen.append(focused(browser))
    assert seen[:4] == ["Hold “castle” to compare", "Play the steps", "Mean over all steps", "Step"]
    browser.run("document.getElementById('step').focus()")
    press(browser, "HOME", "ARROW_RIGHT", "ARROW_RIGHT")
    assert browser.texts("#now") == [f"Step 3 of {STEPS}"]


def test_slider_play_and_mean(browser, pages):
    from selenium.webdriver.common.action_chains import ActionChains

    browser.open(pages("swap")[2])
    slider = browser.find("#step")
    half = slider.size["width"] // 2
    drag = ActionChains(browser.driver).move_to_element_with_offset(slider, half - 12, 0).click_and_hold()
    drag.move_by_offset(-half, 0).release().perform()
    [now] = browser.texts("#now")
    assert re.fullmatch(rf"Step [456] of {STEPS}", now) and settings(browser)["step"] == now.split()[1]
    assert browser.run("return document.querySelector('.window.open u').style.left")
    browser.find("#mean").click()
    assert browser.texts("#now") == [f"Mean of {STEPS}"]
    browser.find("#play").click()
    assert browser.find("#play").get_attribute("aria-label") == "Pause"
    browser.wait(f"return document.getElementById('now').textContent === 'Step {STEPS} of {STEPS}'")
    browser.wait("return document.getElementById('play').getAttribute('aria-label') === 'Play the steps'")
    browser.find("#play").click()
    pause = "document.getElementById('play').click(); return true"  # in the same breath, for a slow machine would be too late
    browser.wait(f"if (playing && state.frame > 0 && state.frame < {STEPS - 1}) {{ {pause} }}")
    [now] = browser.texts("#now")
    browser.driver.execute_async_script("setTimeout(arguments[0], 900)")
    assert browser.texts("#now") == [now]
    assert browser.find("#play").get_attribute("aria-label") == "Play the steps"


def test_the_windows_lie_under_the_steps_they_are_open_in(browser, pages):
    """At each step, the mark is inside a window's bar exactly if the window is open."""
    _, edit, file = pages("swap")
    go(browser, file, word="1.2")
    for step in range(STEPS):
        browser.run("show(arguments[0])", step)
        inside = browser.run(
            "return [...document.querySelectorAll('.window')].map(each => {"
            "  const [bar, mark] = ['i', 'u'].map(name => each.querySelector(name).getBoundingClientRect());"
            "  return [bar.left <= mark.left + 1 && mark.left + 1 <= bar.right, each.classList.contains('open')] })"
        )
        at = edit.at(step, STEPS)
        cross = at.cross_open[0, 0, 0, 3].item()
        assert inside == [[each, each] for each in (cross, at.self_open, at.blend.active)]


def test_the_address_keeps_the_state(browser, pages):
    go(browser, pages("swap")[2])
    browser.run("state.word = {prompt: 0, unit: 5}; show(3)")
    browser.run("change('view', 'before'); change('size', 1); change('under', 'none')")
    kept = settings(browser)
    browser.driver.refresh()
    browser.wait("return !document.getElementById('main').hidden")
    assert settings(browser) == kept and "“road”" in caption(browser)[0] and browser.texts("#now") == [f"Step 4 of {STEPS}"]
    assert browser.texts("input:checked + span") == ["words", "8 × 8", "before", "none", "one scale", "outlined"]
    go(browser, pages("one")[2], word="7.9", step="x", size="3", view="before", held="1.1", target="9", units="?")
    assert "“cat”" in caption(browser)[0]


def test_choices(browser, pages):
    browser.open(pages("cats")[2])
    for target, text in enumerate(CATS[1:], 1):
        browser.find(f"#targets input[value='{target}']").click()
        words = browser.texts(".line.target .label")
        assert words == text.split() and settings(browser)["target"] == str(target)
    choices = {
        "units": ["tokens", "words"],
        "size": ["1", "0"],
        "view": ["before", "after"],
        "colours": ["own", "shared"],
        "under": ["step", "none", "final"],
    }
    for name, values in choices.items():
        for value in values:
            browser.find(f"input[name={name}][value='{value}']").click()
    assert browser.texts("#say p")[-1] == "Under the map: the final picture."
    browser.open(pages("kept maps")[2])
    assert browser.find_all("input[name=view]") == [] and "predicted at step 10" in browser.texts(".plain")[0]
    browser.open(pages("blend alone")[2])
    assert browser.texts(".window-name") == [f"Local blendsteps {STEPS // 2 + 1} to {STEPS}"]
    assert any("prompt 2 may differ from prompt 1" in said for said in browser.texts("#say p"))
    browser.open(pages("no edit")[2])
    assert browser.find_all("#lines path") == [] and browser.find_all(".window") == []


def test_tap(browser, pages):
    browser.open(pages("swap")[2], width=360, height=760, touch=True)
    browser.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        box = word(browser, 0, 1).rect
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            browser.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        browser.wait("return document.querySelector('#say p').textContent.includes('“red” looks here')")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


# ---------------------------------------------------------------- looks


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_is_wider_than_the_page(width, browser, pages):
    for name, units in (("swap", "words"), ("cats", "words"), ("evil", "tokens"), ("one", "tokens")):
        browser.open(f"{pages(name)[2].as_uri()}#units={units}", width=width)
        assert browser.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read(dark, browser, pages):
    """All text has a contrast of at least 4.5 to what is behind it (WCAG 2, level AA)."""
    browser.open(f"{pages('night')[2].as_uri()}#units=tokens&step=3", dark=dark)
    low = browser.run("""
        const parse = colour => colour.match(/[\\d.]+/g).map(Number);
        const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        const parts = [0.2126, 0.7152, 0.0722];
        const light = colour => parse(colour).slice(0, 3).reduce((sum, c, i) => sum + linear(c / 255) * parts[i], 0);
        const behind = each => { while (each) { const colour = getComputedStyle(each).backgroundColor;
            if (colour !== 'rgba(0, 0, 0, 0)') return colour; each = each.parentElement; } return 'rgb(255, 255, 255)'; };
        const written = each => [...each.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        const skipped = ['SCRIPT', 'STYLE', 'text'];
        return [...document.querySelectorAll('body *')].filter(each => each.checkVisibility() && !skipped.includes(each.tagName)
            && written(each)).map(each => {
            const [a, b] = [light(getComputedStyle(each).color), light(behind(each))].sort((x, y) => y - x);
            return [(a + 0.05) / (b + 0.05), each.textContent] }).filter(([contrast]) => contrast < 4.5)
    """)
    assert low == []


def test_a_screen_reader_finds_names(browser, pages):
    browser.open(pages("swap")[2])
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = {}
    for node in nodes:
        role, name = node.get("role", {}).get("value"), node.get("name", {}).get("value", "")
        if not node.get("ignored"):
            found.setdefault(role, []).append(name)
    for role in ("button", "slider", "radio", "option", "listbox", "image", "region"):
        names = [name for name in found.get(role, []) if name or role != "image"]
        assert names and all(names), role
    assert any(re.match(r"castle, [\d.]+\s% of attention", name) for name in found["option"])
    assert any(name.startswith("Map of “castle” in the target: strongest in row ") for name in found["image"])


def test_maps_are_drawn(browser, pages):
    """Without a picture, each square has the colour of its cell: no square is brighter than that of the strongest cell."""
    result, _, file = pages("swap")
    go(browser, file, under="none", word="1.2", step=5, mask="off")
    cells = result.maps.word("castle", prompt=1)[4]
    height, width = cells.shape
    light = browser.run(
        "const canvas = document.querySelectorAll('.pane canvas')[1], side = canvas.width / arguments[0];"
        "const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        "return Array.from({length: arguments[0] * arguments[0]}, (_, i) => {"
        "  const x = Math.floor((i % arguments[0] + 0.5) * side), y = Math.floor((Math.floor(i / arguments[0]) + 0.5) * side);"
        "  return [...pixels.data.slice(4 * (y * canvas.width + x), 4 * (y * canvas.width + x) + 3)].reduce((a, b) => a + b) })",
        width,
    )
    light = torch.tensor(light, dtype=torch.float32).reshape(height, width)
    assert light.flatten()[cells.argmax()] == light.max()  # another cell may round to the same colour
    assert torch.corrcoef(torch.stack([light.flatten(), cells.float().flatten()]))[0, 1] > 0.9


# ---------------------------------------------------------------- text, and where the page lives


def test_prompts_are_shown_and_never_run(browser, pages):
    file = pages("evil")[2]
    browser.open(file)
    assert browser.run("return document.title") == " → ".join(EVIL)
    assert browser.run("return window.name") != "1", "a script in a prompt was run"
    assert browser.run("return document.querySelectorAll('#rows script, #rows img, #say img').length") == 0
    assert "🐱" in browser.texts(".line .label")
    labels = browser.texts(".line.target .label")
    assert "".join(labels).replace(" ", "").startswith('a"&</script><script>')


def test_in_a_notebook_s_frame(browser, pages, toy, tmp_path):
    result, edit, _ = pages("swap")
    file = tmp_path / "notebook.html"
    frame = explore(toy, result, edit)._repr_html_()
    file.write_text(f"<!doctype html><meta charset=utf-8><main id=main></main>{frame}", encoding="utf-8")
    browser.open(file)
    browser.driver.switch_to.frame(0)
    try:
        browser.wait("return document.getElementById('main') && !document.getElementById('main').hidden")
        browser.run("choose({prompt: 0, unit: 1})")
        browser.run("save()")
        assert "“red”" in caption(browser)[0]
    finally:
        browser.driver.switch_to.default_content()


def test_a_damaged_page_says_so(browser, pages, tmp_path):
    text = pages("swap")[2].read_text(encoding="utf-8")
    file = tmp_path / "damaged.html"
    start = text.index('"cells":"') + len('"cells":"')
    file.write_text(text[:start] + json.dumps("AAAA")[1:-1] + text[start + 4 :], encoding="utf-8")
    browser.driver.get(file.as_uri())
    browser.wait("return !document.getElementById('trouble').hidden")
    assert browser.texts("#trouble")[0].startswith("The page could not be shown")
    assert browser.errors()
