//! A certificate authority for one cluster.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::shell;

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Signs certificates that are good for a month.
pub struct Authority {
    directory: PathBuf,
    authority: Certificate,
}

impl Authority {
    pub fn new(directory: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let authority = files(&directory, "ca");
        shell::read(&mut new_certificate("/CN=nodevitals-test-ca", &authority))?;
        Ok(Self { directory, authority })
    }

    pub fn certificate(&self) -> &Path {
        &self.authority.certificate
    }

    /// A certificate `name` for a user of groups, or for a server that is reached as `alternatives` (`IP:10.0.0.1`).
    pub fn issue(&self, name: &str, user: &str, groups: &[&str], alternatives: &[&str]) -> Result<Certificate> {
        let issued = files(&self.directory, name);
        let subject: Vec<_> = groups.iter().map(|group| format!("/O={group}")).chain([format!("/CN={user}")]).collect();
        let mut openssl = new_certificate(&subject.concat(), &issued);
        openssl
            .arg("-CA")
            .arg(&self.authority.certificate)
            .arg("-CAkey")
            .arg(&self.authority.key)
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-addext", "extendedKeyUsage=serverAuth,clientAuth"]);
        if !alternatives.is_empty() {
            openssl.args(["-addext", &format!("subjectAltName={}", alternatives.join(","))]);
        }
        shell::read(&mut openssl)?;
        Ok(issued)
    }

    /// A private key `name` and its public part, for service account tokens.
    pub fn key_pair(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let private = self.directory.join(format!("{name}.key"));
        let public = self.directory.join(format!("{name}.pub"));
        let mut generate = Command::new("openssl");
        generate.args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"]).arg(&private);
        shell::read(&mut generate)?;
        let mut publish = Command::new("openssl");
        publish.args(["pkey", "-pubout", "-in"]).arg(&private).arg("-out").arg(&public);
        shell::read(&mut publish)?;
        Ok((private, public))
    }
}

fn files(directory: &Path, name: &str) -> Certificate {
    let file = |kind: &str| directory.join(format!("{name}.{kind}"));
    Certificate { certificate: file("crt"), key: file("key") }
}

/// Elliptic curve keys: a fiftieth of the time of RSA ones.
fn new_certificate(subject: &str, to: &Certificate) -> Command {
    let mut openssl = Command::new("openssl");
    openssl
        .args(["req", "-x509", "-nodes", "-days", "30", "-newkey", "ec"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", subject])
        .arg("-keyout")
        .arg(&to.key)
        .arg("-out")
        .arg(&to.certificate);
    openssl
}
