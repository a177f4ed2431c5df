//! The project's container image, built as it is shipped but without a registry.

use std::{
    ffi::OsStr,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{parts, shell};

/// What nodes know the image as; use it with `imagePullPolicy: Never`.
pub const NAME: &str = "docker.io/library/nodevitals:test";

const BASE: &str = "localhost/nodevitals-base:bookworm";
const BASE_ROOT: &str = "base-bookworm.tar";
/// What the Dockerfile may copy, as far as it is there.
const CONTEXT: [&str; 7] = ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo", "LICENSE", "src", "deploy"];

/// Builds `dockerfile` of the project at `root` around `binary`: an archive that `Node::import_image` takes.
///
/// Both base images are Debian's packages as installed by the setup script, given by the build arguments
/// `BUILD_IMAGE` and `RUN_IMAGE`. `PREBUILT=nodevitals` names the binary in the build context.
/// An archive of the same binary and Dockerfile is used again.
pub fn build(root: &Path, dockerfile: &Path, binary: &Path) -> Result<PathBuf> {
    let images = parts::cache().join("images");
    fs::create_dir_all(&images)?;
    let lock = File::create(images.join("lock"))?;
    lock.lock()?;

    let archive = images.join(format!("nodevitals-{:016x}.tar", fingerprint(&[dockerfile, binary])?));
    if archive.exists() {
        return Ok(archive);
    }
    eprintln!("building the container image");
    let buildah = Buildah { storage: images.join("buildah") };
    buildah.import_base()?;
    let context = build_context(root, binary)?;
    let unfinished = images.join("nodevitals.tar.unfinished");
    buildah.build(dockerfile, context.path())?;
    buildah.save(&unfinished)?;
    remove_older(&images)?;
    fs::rename(&unfinished, &archive)?;
    Ok(archive)
}

struct Buildah {
    storage: PathBuf,
}

impl Buildah {
    /// Makes the base image of the Debian root, unless it is there and as new.
    fn import_base(&self) -> Result<()> {
        let root = parts::archive(BASE_ROOT)?;
        let made_of = self.storage.join("base");
        let identity = format!("{:?}", fs::metadata(&root)?.modified()?);
        if fs::read_to_string(&made_of).is_ok_and(|made_of| made_of == identity) {
            return Ok(());
        }
        let container = self.run(&["from", "scratch"])?;
        let container = container.trim();
        self.run(&[OsStr::new("add"), "--quiet".as_ref(), container.as_ref(), root.as_os_str()])?;
        self.run(&["commit", "--quiet", "--rm", container, BASE])?;
        Ok(fs::write(made_of, identity)?)
    }

    fn build(&self, dockerfile: &Path, context: &Path) -> Result<()> {
        let mut build = self.command();
        build
            .args(["build", "--quiet", "--isolation", "chroot", "--pull-never", "--layers=false"])
            .args(["--build-arg", &format!("BUILD_IMAGE={BASE}")])
            .args(["--build-arg", &format!("RUN_IMAGE={BASE}")])
            .args(["--build-arg", "PREBUILT=nodevitals", "--tag", NAME, "--file"])
            .arg(dockerfile)
            .arg(context);
        shell::read(&mut build).with_context(|| dockerfile.display().to_string())?;
        Ok(())
    }

    fn save(&self, archive: &Path) -> Result<()> {
        if archive.exists() {
            fs::remove_file(archive)?;
        }
        let to = format!("docker-archive:{}:{NAME}", archive.display());
        self.run(&["push", "--quiet", NAME, &to])?;
        // The archive is all that is wanted, and each image is a copy of the base.
        self.run(&["rmi", NAME])?;
        Ok(())
    }

    fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        shell::read(self.command().args(arguments))
    }

    fn command(&self) -> Command {
        let mut buildah = Command::new("buildah");
        buildah
            .args(["--storage-driver", "vfs", "--root"])
            .arg(self.storage.join("root"))
            .arg("--runroot")
            .arg(self.storage.join("run"));
        buildah
    }
}

fn build_context(root: &Path, binary: &Path) -> Result<tempfile::TempDir> {
    let context = tempfile::tempdir()?;
    for entry in CONTEXT.iter().map(|name| root.join(name)).filter(|path| path.exists()) {
        shell::read(Command::new("cp").arg("-a").arg(entry).arg(context.path()))?;
    }
    fs::copy(binary, context.path().join("nodevitals"))
        .with_context(|| format!("{} is not built", binary.display()))?;
    Ok(context)
}

fn fingerprint(files: &[&Path]) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for file in files {
        let content = fs::read(file).with_context(|| file.display().to_string())?;
        content.hash(&mut hasher);
    }
    fs::metadata(parts::archive(BASE_ROOT)?)?.modified()?.hash(&mut hasher);
    Ok(hasher.finish())
}

fn remove_older(images: &Path) -> Result<()> {
    for entry in fs::read_dir(images)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
