//! A real Chromium by chromedriver, with a few commands of WebDriver (<https://www.w3.org/TR/webdriver2/>), in the network of
//! the control plane.

use std::process::Child;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::bench::{Bench, soon};
use crate::support::shell;

const PORT: u16 = 10_599;
const DRIVER: &str = "http://127.0.0.1:10599";

/// A window. It is closed, and the browser ended, when this is dropped.
pub(crate) struct Browser<'a> {
    bench: &'a Bench,
    driver: Child,
    session: String,
}

impl<'a> Browser<'a> {
    /// Opens a window of 1280 by 900 pixels.
    pub(crate) fn open(bench: &'a Bench) -> Result<Self> {
        let profile = bench.workspace().directory().join("chromium");
        let driver = bench
            .command_in("chromedriver")
            .arg(format!("--port={PORT}"))
            .env("HOME", &profile)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .context("chromedriver, of Debian's package chromium-driver")?;
        let mut browser = Browser { bench, driver, session: String::new() };
        soon("chromedriver listens", || browser.send("GET", "status", &Value::Null));
        // As root Chromium has no sandbox of its own; the network namespace has nothing but the control plane.
        let user_data = format!("--user-data-dir={}", profile.display());
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
            &user_data,
        ];
        let options = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}});
        let session = browser.send("POST", "session", &options)?;
        session["sessionId"].as_str().context("a session")?.clone_into(&mut browser.session);
        Ok(browser)
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let mut curl = self.bench.command_in("curl");
        curl.args(["--silent", "--show-error", "--max-time", "60", "--request", method]);
        let url = format!("{DRIVER}/{path}");
        let text = if body.is_null() {
            shell::read(curl.arg(url))?
        } else {
            curl.args(["--header", "Content-Type: application/json", "--data-binary", "@-"]).arg(url);
            shell::read_with_input(&mut curl, &body.to_string())?
        };
        let mut answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        let value = answer["value"].take();
        if value["error"].is_string() {
            bail!("{method} {path}: {} {}", value["error"], value["message"]);
        }
        Ok(value)
    }

    fn command(&self, path: &str, body: &Value) -> Result<Value> {
        self.send("POST", &format!("session/{}/{path}", self.session), body)
    }

    /// Goes to an address and waits until it is loaded.
    pub(crate) fn go(&self, url: &str) -> Result<()> {
        self.command("url", &json!({"url": url})).map(drop)
    }

    /// What a function body of JavaScript returns in the page.
    pub(crate) fn run(&self, script: &str) -> Result<Value> {
        self.command("execute/sync", &json!({"script": script, "args": []}))
    }

    /// The text that it returns.
    pub(crate) fn text(&self, script: &str) -> Result<String> {
        let value = self.run(script)?;
        value.as_str().map(str::to_owned).with_context(|| format!("{script}: {value}"))
    }

    /// Presses and releases a key, one of those with names: <https://www.w3.org/TR/webdriver2/#keyboard-actions>.
    pub(crate) fn press(&self, key: Key) -> Result<()> {
        let key = char::from_u32(key as u32).context("a key")?.to_string();
        let actions = [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        self.command("actions", &json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})).map(drop)
    }

    /// A command of Chromium's own protocol (<https://chromedevtools.github.io/devtools-protocol/>).
    pub(crate) fn developer(&self, command: &str, parameters: &Value) -> Result<Value> {
        self.command("goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        // The driver ends the browser with the session; neither outlives the namespaces anyway.
        let _ = self.send("DELETE", &format!("session/{}", self.session), &Value::Null);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Keys without a character.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Key {
    /// Tab.
    Tab = 0xE004,
    /// Enter.
    Enter = 0xE007,
    /// Escape.
    Escape = 0xE00C,
    /// End.
    End = 0xE010,
    /// Home.
    Home = 0xE011,
    /// Arrow right.
    Right = 0xE014,
    /// Arrow down.
    Down = 0xE015,
}
