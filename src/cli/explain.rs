//! `nodevitals explain`: what a finding, a state or a message means, whose it is, and what to do in which order.

mod book;
mod print;
mod search;
mod squeeze;

use std::io::Read as _;
use std::process::ExitCode;

use clap::ValueEnum;

use super::terminal::Paint;
use super::{Output, failed};
pub(super) use book::{Book, Item};

/// Of a longer text only the end is read: that is where the trouble is.
const MOST_BYTES: usize = 4 << 20;
/// The exit status when nothing is known about it.
const UNKNOWN: u8 = 1;

/// Options of `nodevitals explain`.
///
/// Names of findings, states of workers, messages of the provider, events, lines of logs: whole, wrapped, cut off or in the
/// middle of other text. Nothing is asked of any network. Exit status: 0 explained, 1 nothing is known about it, 64 bad usage.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// A finding's code, a worker's state, an error text; `-` reads a log or `kubectl describe` from standard input
    #[arg(required_unless_present = "list", value_name = "CODE|TEXT|-", allow_hyphen_values = true)]
    text: Vec<String>,

    /// Show the commands of this product alone; without it every command says where it differs
    #[arg(short, long, value_enum, value_name = "PRODUCT")]
    product: Option<Product>,

    /// Explain everything that was recognised in full, not the first alone
    #[arg(short, long)]
    all: bool,

    /// List everything that can be explained
    #[arg(short, long, conflicts_with_all = ["text", "all"])]
    list: bool,

    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// What the workers belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
enum Product {
    /// IBM Cloud Kubernetes Service on classic infrastructure
    IksClassic,
    /// IBM Cloud Kubernetes Service on VPC
    IksVpc,
    /// Red Hat OpenShift on IBM Cloud; where its infrastructure matters both are shown
    Roks,
    /// Any other Kubernetes
    Kubernetes,
}

impl Product {
    /// Whether what is for these products is for this one.
    fn has(self, products: &str) -> bool {
        let wanted = |name: &str| match self {
            Product::IksClassic => matches!(name, "classic" | "ibm"),
            Product::IksVpc => matches!(name, "vpc" | "ibm"),
            // It runs on either.
            Product::Roks => name != "kubernetes",
            Product::Kubernetes => name == "kubernetes",
        };
        products.is_empty() || products.split(',').any(wanted)
    }
}

/// The names of everything that can be explained.
pub(super) fn names() -> Vec<String> {
    Book::open().entries.iter().map(|entry| entry.record.name.to_owned()).collect()
}

pub(super) fn run(options: &Options) -> ExitCode {
    let book = Book::open();
    if options.list {
        let list = || print::list(&book, Paint::stdout());
        return written(options.output.write(|| print::all(&book, options.product), list));
    }
    let text = match input(&options.text) {
        Ok(text) => text,
        Err(error) => return failed(&error),
    };
    let matches = search::search(&book, &text);
    let known = !matches.is_empty();
    let answer = print::Answer { book: &book, text: &text, matches: &matches, product: options.product };
    let table = || answer.table(options.all, Paint::stdout());
    let printed = written(options.output.write(|| answer.document(), table));
    if known { printed } else { ExitCode::from(UNKNOWN) }
}

fn written(text: anyhow::Result<String>) -> ExitCode {
    match text {
        Ok(text) => {
            super::terminal::print(&text);
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error.context("cannot write the explanation")),
    }
}

/// What is to be explained.
fn input(words: &[String]) -> anyhow::Result<String> {
    let text = match words {
        [dash] if dash == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .lock()
                .read_to_end(&mut bytes)
                .map_err(|error| anyhow::anyhow!("standard input: {error}"))?;
            let start = bytes.len().saturating_sub(MOST_BYTES);
            String::from_utf8_lossy(&bytes[start..]).into_owned()
        }
        words => words.join(" "),
    };
    anyhow::ensure!(!text.trim().is_empty(), "there is nothing to explain: the text is empty");
    Ok(text)
}

/// Recognises and prints a text: whatever it is.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    let book = Book::open();
    let matches = search::search(&book, text);
    let answer = print::Answer { book: &book, text, matches: &matches, product: None };
    assert!(!answer.table(true, Paint::PLAIN).contains('\x1b'), "nothing steers the terminal");
    answer.document();
}

#[cfg(test)]
mod tests;
