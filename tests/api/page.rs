//! The page in a real Chromium, over planted workers on a real API server.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Running, THEN, TYPES, condition, now, soon};
use crate::browser::{Browser, Key};

const NODES: usize = 40;
const BROKEN: usize = 7;
/// What somebody may have written into an annotation.
const PLANTED: &str = "<script>window.planted=1</script><img src=x onerror=\"window.planted=1\">\u{202e}";

fn name(number: usize) -> String {
    format!("w{number:02}")
}

/// What an agent writes; with this text in its one finding.
fn told(state: &str, detail: Option<&str>) -> Value {
    let since = now();
    let finding = detail.map(|detail| {
        json!([{
            "code": "KubeProxyChainsUnhooked", "severity": "critical", "area": "packetFilter", "subject": detail,
            "since": since, "detail": detail, "next": format!("restart kube-proxy {detail}"),
        }])
    });
    let conditions = TYPES.map(|kind| match detail {
        Some(_) if ["WorkerProblem", "PacketFilterProblem"].contains(&kind) => {
            condition(kind, "True", "KubeProxyChainsUnhooked")
        }
        _ => condition(kind, "False", "Healthy"),
    });
    let annotations = json!({
        "nodevitals.dev/state": state, "nodevitals.dev/since": since,
        "nodevitals.dev/findings": finding.unwrap_or(json!([])).to_string(),
    });
    json!({"metadata": {"annotations": annotations}, "status": {"conditions": conditions}})
}

fn tell(bench: &Bench, number: usize, told: &Value) -> Result<()> {
    bench.admin(&format!("PATCH strategic /api/v1/nodes/{}/status", name(number)), told).map(drop)
}

/// Workers in two zones and two pools, each with an agent; one of them is broken.
fn fill(bench: &Bench) -> Result<()> {
    for number in 0..NODES {
        let (zone, pool) = (if number < 20 { "z1" } else { "z2" }, if number % 2 == 0 { "blue" } else { "red" });
        bench.add_node(&name(number), &json!({"topology.kubernetes.io/zone": zone, "agentpool": pool}))?;
        bench.add_agent_pod(&name(number))?;
        bench.set_ready(&format!("agent-{}", name(number)), true)?;
        let broken = number == BROKEN;
        tell(bench, number, &told(if broken { "Critical" } else { "Normal" }, broken.then_some(PLANTED)))?;
    }
    Ok(())
}

fn seen<T: PartialEq + std::fmt::Debug>(what: &T, expected: &T) -> Result<()> {
    ensure!(what == expected, "{what:?} instead of {expected:?}");
    Ok(())
}

#[test]
fn the_page_in_a_browser() -> Result<()> {
    let bench = Bench::take()?;
    fill(&bench)?;
    bench.add_pod("aggregator-page", "aggregator", &name(0))?;
    let aggregator = bench.aggregator("aggregator-page")?;
    soon("it is ready", || aggregator.page("/readyz"));
    let browser = Browser::open(&bench)?;
    browser.go(&format!("http://127.0.0.1:{}/", aggregator.port))?;
    it_shows_every_worker(&browser, &aggregator)?;
    what_others_wrote_is_text(&browser)?;
    what_was_started_is_told_with_when(&browser, &aggregator)?;
    it_is_live(&bench, &browser)?;
    the_keyboard_is_enough(&browser)?;
    it_can_be_read_by_everyone(&browser)?;
    workers_are_found(&browser)?;
    it_tells_what_is_shared_what_changed_and_what_is_over(&bench, &browser)?;
    it_needs_nothing_from_elsewhere(&browser, &aggregator)?;
    it_says_when_it_is_not_live(&browser, &aggregator)
}

fn it_shows_every_worker(browser: &Browser<'_>, aggregator: &Running<'_>) -> Result<()> {
    soon("a cell for each worker", || {
        seen(&browser.run("return document.querySelectorAll('.cell').length")?, &json!(NODES))
    });
    let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
    assert_eq!(browser.text("return $('summary').textContent")?, report["summary"].as_str().context("a summary")?);
    let headings = browser.run("return [...document.querySelectorAll('#grid h3')].map(h => h.textContent)")?;
    let expected = [
        "zone z1, pool blue: 10 Normal",
        "zone z1, pool red: 1 Critical, 9 Normal",
        "zone z2, pool blue: 10 Normal",
        "zone z2, pool red: 10 Normal",
    ];
    assert_eq!(headings, json!(expected));
    let findings = browser.text("return $('findings').innerText")?;
    assert!(findings.contains("KubeProxyChainsUnhooked") && findings.contains("1 of 40 workers"), "{findings}");
    Ok(())
}

/// Names and messages from the cluster are shown as they are, and never run.
fn what_others_wrote_is_text(browser: &Browser<'_>) -> Result<()> {
    browser.run(&format!("location.hash = 'node={}'", name(BROKEN)))?;
    soon("the worker's own part", || {
        let text = browser.text("return $('worker').innerText")?;
        ensure!(text.contains("w07: Critical") && text.contains("<script>window.planted=1</script>"), "{text}");
        ensure!(text.contains("PacketFilterProblem became True"), "{text}");
        // What turns the writing direction around turns nothing else.
        let pieces = browser.run("return [...document.querySelectorAll('#worker-findings bdi')].length")?;
        ensure!(pieces.as_u64() >= Some(2), "{pieces}");
        Ok(())
    });
    let planted = "return [typeof window.planted, document.querySelectorAll('main script, main img').length]";
    assert_eq!(browser.run(planted)?, json!(["undefined", 0]));
    Ok(())
}

/// An agent says with its question when its kubelet and runtime were started.
fn what_was_started_is_told_with_when(browser: &Browser<'_>, aggregator: &Running<'_>) -> Result<()> {
    let now = jiff::Timestamp::now().as_second();
    let (kubelet, runtime) = (now - 3 * 3_600 - 60, now - 2 * 86_400 - 60);
    let question = format!("/api/v1/map?node={}&started={kubelet}.{runtime}&boot={}", name(BROKEN), runtime - 30);
    soon("its question is answered", || aggregator.page(&question));
    let one: Value = serde_json::from_str(&aggregator.page(&format!("/api/v1/report?node={}", name(BROKEN)))?)?;
    let at = |second| jiff::Timestamp::from_second(second).map(|at| json!(at.to_string()));
    assert_eq!(
        (&one["nodes"][0]["kubeletStarted"], &one["nodes"][0]["runtimeStarted"]),
        (&at(kubelet)?, &at(runtime)?)
    );
    browser.run(&format!("location.hash = ''; location.hash = 'node={}'", name(BROKEN)))?;
    soon("both are on the page", || {
        let line = browser.text("return $('worker-line').textContent")?;
        ensure!(line.contains("kubelet since ") && line.contains("(3 h)") && line.contains("(2 d)"), "{line}");
        let timeline = browser.text("return $('timeline').innerText")?;
        ensure!(
            timeline.contains("kubelet started") && timeline.contains("containerd") && timeline.contains("booted"),
            "{timeline}"
        );
        Ok(())
    });
    Ok(())
}

/// A change is there without a new page.
fn it_is_live(bench: &Bench, browser: &Browser<'_>) -> Result<()> {
    browser.run("window.samePage = true; location.hash = ''")?;
    let cell = "return document.querySelector('.cell[data-name=w22]').getAttribute('aria-label')";
    assert_eq!(browser.text(cell)?, "w22, Normal");
    tell(bench, 22, &told("Critical", Some("jump gone")))?;
    soon("the broken worker", || seen(&browser.text(cell)?, &"w22, Critical, KubeProxyChainsUnhooked".to_owned()));
    tell(bench, 22, &told("Normal", None))?;
    soon("the healthy worker", || seen(&browser.text(cell)?, &"w22, Normal".to_owned()));
    assert_eq!(browser.run("return window.samePage")?, json!(true));
    bench.admin("DELETE /api/v1/nodes/w39", &Value::Null)?;
    soon("a worker that is gone", || {
        seen(&browser.run("return document.querySelectorAll('.cell').length")?, &json!(NODES - 1))
    });
    Ok(())
}

fn the_keyboard_is_enough(browser: &Browser<'_>) -> Result<()> {
    let focused = || browser.text("return document.activeElement.dataset.name ?? document.activeElement.id");
    // One stop of the Tab key for all cells together: from the last field of the filter.
    browser.run("$('by').focus()")?;
    browser.press(Key::Tab)?;
    let first = focused()?;
    assert!(first.starts_with('w'), "{first}");
    browser.press(Key::Home)?;
    assert_eq!(focused()?, "w00");
    browser.press(Key::Right)?;
    assert_eq!(focused()?, "w02");
    browser.press(Key::Down)?;
    assert_eq!(focused()?, "w03", "the cell below, in the next group");
    browser.press(Key::End)?;
    assert_eq!(focused()?, "w37");
    browser.press(Key::Enter)?;
    soon("the worker is open and read from its heading", || seen(&focused()?, &"worker-title".to_owned()));
    assert_eq!(browser.text("return location.hash")?, "#node=w37");
    browser.press(Key::Escape)?;
    soon("back at its cell", || seen(&focused()?, &"w37".to_owned()));
    assert_eq!(browser.run("return $('worker').hidden")?, json!(true));
    Ok(())
}

/// Every control has a name that a screen reader says, every text is told from its ground in both schemes (WCAG 2.2,
/// 1.4.3), and no state is told by colour alone.
fn it_can_be_read_by_everyone(browser: &Browser<'_>) -> Result<()> {
    browser.developer("Accessibility.enable", &json!({}))?;
    let tree = browser.developer("Accessibility.getFullAXTree", &json!({}))?;
    let controls = ["button", "checkbox", "combobox", "searchbox", "link", "heading"];
    let nodes: Vec<&Value> =
        tree["nodes"].as_array().context("a tree")?.iter().filter(|node| node["ignored"] != json!(true)).collect();
    let of = |role: &str| nodes.iter().filter(|node| node["role"]["value"] == role).count();
    assert!(of("button") >= NODES - 1 && of("checkbox") == 4 && of("main") == 1, "{} buttons", of("button"));
    for node in &nodes {
        let (role, name) = (node["role"]["value"].as_str().unwrap_or_default(), &node["name"]["value"]);
        let named = name.as_str().is_some_and(|name| !name.trim().is_empty());
        assert!(named || !controls.contains(&role), "a {role} without a name: {node}");
    }
    let letters = browser.run("return STATES.map(state => LETTER[state])")?;
    let distinct: std::collections::BTreeSet<_> =
        letters.as_array().context("letters")?.iter().map(Value::to_string).collect();
    assert_eq!(distinct.len(), 4, "{letters}");
    for scheme in ["light", "dark"] {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.developer("Emulation.setEmulatedMedia", &features)?;
        let poor = browser.run(CONTRASTS)?;
        assert_eq!(poor, json!([]), "{scheme}");
    }
    Ok(())
}

/// Texts with less than 4.5 to 1 to their ground.
const CONTRASTS: &str = r"
    const channels = (color) => color.match(/[\d.]+/g).map(Number);
    const light = (color) => channels(color).slice(0, 3).map((value) => value / 255)
        .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
    const ground = (element) => {
        for (; element; element = element.parentElement) {
            const color = getComputedStyle(element).backgroundColor;
            if (channels(color)[3] !== 0) return color;
        }
        return 'rgb(255, 255, 255)';
    };
    const samples = STATES.map((state) => { const span = document.createElement('span'); span.className = state;
        span.textContent = state; document.body.append(span); return span; });
    const texts = [...document.querySelectorAll('body *')].filter((element) => element.checkVisibility()
        && [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()));
    const poor = texts.map((element) => {
        const [a, b] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
        return [element.tagName, element.className, element.textContent.slice(0, 20), (a + 0.05) / (b + 0.05)];
    }).filter(([, , , ratio]) => ratio < 4.5);
    samples.forEach((sample) => sample.remove());
    return texts.length > 20 ? poor : ['too few texts', texts.length];
";

fn workers_are_found(browser: &Browser<'_>) -> Result<()> {
    let visible = "return [...document.querySelectorAll('.cell')].map(cell => cell.dataset.name).join(' ')";
    let filter = |text: &str| {
        browser
            .run(&format!("$('find').value = '{text}'; $('find').dispatchEvent(new Event('input', {{bubbles: true}}))"))
    };
    filter("unhooked")?;
    assert_eq!(browser.text(visible)?, "w07");
    filter("z2 w3")?;
    assert_eq!(browser.text(visible)?, "w30 w32 w34 w36 w38 w31 w33 w35 w37");
    filter("nothing like it")?;
    assert_eq!(browser.text("return $('shown').textContent")?, "0 of 39 workers shown.");
    filter("")?;
    browser.run("$('show-Normal').click()")?;
    assert_eq!(browser.text(visible)?, "w07");
    browser.run("$('show-Normal').click()").map(drop)
}

/// Seven of one pool fail, after a policy was made; and one of them had something that is over.
fn it_tells_what_is_shared_what_changed_and_what_is_over(bench: &Bench, browser: &Browser<'_>) -> Result<()> {
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed"},
        "spec": {"podSelector": {}}});
    bench.admin("POST /apis/networking.k8s.io/v1/namespaces/default/networkpolicies", &policy)?;
    for number in [21, 23, 25, 27, 29, 31] {
        tell(bench, number, &told("Critical", Some("jump gone")))?;
    }
    soon("the shared cause and the change", || {
        let findings = browser.text("return $('findings').innerText")?;
        ensure!(findings.contains("Suspect: 7 of 19 in pool red fail, 0 of 20 elsewhere"), "{findings}");
        ensure!(findings.contains("Changed before:"), "{findings}");
        ensure!(findings.contains("NetworkPolicy default/closed made by curl"), "{findings}");
        Ok(())
    });
    let episodes = json!([{"code": "DiskFull", "since": "2026-11-20T10:00:00Z", "cleared": "2026-11-20T12:00:00Z", "times": 1,
        "cure": "reboot"}, {"code": 7}]);
    let annotations = json!({"nodevitals.dev/episodes": episodes.to_string()});
    bench.admin("PATCH merge /api/v1/nodes/w21", &json!({"metadata": {"annotations": annotations}}))?;
    browser.run("location.hash = 'node=w21'")?;
    soon("what is over", || {
        let timeline = browser.text("return $('timeline').innerText")?;
        ensure!(timeline.contains("DiskFull over, after 2 h, by a reboot"), "{timeline}");
        ensure!(timeline.contains("2026-11-20 10:00:00Z"), "{timeline}");
        Ok(())
    });
    browser.run("location.hash = ''")?;
    for number in [21, 23, 25, 27, 29, 31] {
        tell(bench, number, &told("Normal", None))?;
    }
    bench.admin("DELETE /apis/networking.k8s.io/v1/namespaces/default/networkpolicies/closed", &Value::Null).map(drop)
}

fn it_needs_nothing_from_elsewhere(browser: &Browser<'_>, aggregator: &Running<'_>) -> Result<()> {
    let origins =
        "return [...new Set(performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin))]";
    assert_eq!(browser.run(origins)?, json!([format!("http://127.0.0.1:{}", aggregator.port)]));
    // The policy of the page holds: what is put in does not run, wherever it came from.
    let refused = browser.run(
        "window.refused = 0; document.addEventListener('securitypolicyviolation', () => window.refused++);
         const script = document.createElement('script'); script.textContent = 'window.planted = 2';
         document.body.append(script); script.remove(); return typeof window.planted",
    )?;
    assert_eq!(refused, json!("undefined"));
    soon("the browser has refused it", || seen(&browser.run("return window.refused")?, &json!(1)));
    Ok(())
}

fn it_says_when_it_is_not_live(browser: &Browser<'_>, aggregator: &Running<'_>) -> Result<()> {
    let fresh = || browser.text("return $('fresh').textContent");
    let line = fresh()?;
    assert!(line.starts_with("Live, as of 20"), "{line}");
    aggregator.end()?;
    // As if the time had passed.
    browser.run("answered -= LATE; freshness()")?;
    let line = fresh()?;
    assert!(line.starts_with("Not live: no answer from the aggregator; as of 20"), "{line}");
    assert!(line.contains(&THEN[..4]), "{line}");
    Ok(())
}
