//! A BIRD for tests: the control socket, and as much behind it as the driver asks for.

use std::fs;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// Its behaviour and its memory.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    /// Its configuration does not include the file.
    pub(super) excludes: bool,
    /// Its answer to `configure`, if that is to fail.
    pub(super) refusal: Option<&'static str>,
    /// The number of looks until it does what it was told.
    pub(super) looks_behind: u32,
    /// It takes commands and answers none.
    pub(super) hangs: bool,
    /// Its words in place of its greeting.
    pub(super) greeting: Option<&'static str>,
    /// The commands that it was given.
    pub(super) commands: Vec<String>,
    loaded: Option<String>,
    coming: Option<String>,
    disabled: bool,
}

impl Conduct {
    fn answer(&mut self, command: &str, file: &PathBuf) -> String {
        self.commands.push(command.to_owned());
        match command {
            "configure soft" => {
                if let Some(refusal) = self.refusal {
                    return format!("0002-Reading configuration from /etc/bird/bird.conf\n{refusal}\n");
                }
                self.disabled = false;
                self.coming = if self.excludes { None } else { fs::read_to_string(file).ok() };
                if self.looks_behind > 0 {
                    return "0002-Reading configuration\n0004 Reconfiguration in progress\n".to_owned();
                }
                self.loaded = self.coming.take();
                "0002-Reading configuration\n0003 Reconfigured\n".to_owned()
            }
            "show protocols \"drover_v*\"" => {
                match self.looks_behind {
                    0 => {}
                    1 => (self.looks_behind, self.loaded) = (0, self.coming.take()),
                    _ => self.looks_behind -= 1,
                }
                if self.loaded.is_none() {
                    return "8003 No protocols match\n".to_owned();
                }
                let state = if self.disabled { "down" } else { "up" };
                format!(
                    "2002-Name       Proto      Table      State  Since         Info\n\
                     1002-drover_v4  Static     master4    {state}     03:26:15.578  \n \
                     drover_v6  Static     master6    {state}     03:26:15.578  \n0000 \n"
                )
            }
            "show static drover_v4" => self.routes("/32"),
            "show static drover_v6" => self.routes("/128"),
            "disable \"drover_v*\"" => {
                self.disabled = true;
                "0009-drover_v4: disabled\n drover_v6: disabled\n0000 \n".to_owned()
            }
            _ => "9001 syntax error\n".to_owned(),
        }
    }

    fn routes(&self, length: &str) -> String {
        let mut reply = String::new();
        for line in self.loaded.as_deref().unwrap_or_default().lines() {
            let route = line.trim().strip_prefix("route ").and_then(|route| route.split_once(' '));
            if let Some((prefix, _)) = route.filter(|(prefix, _)| prefix.ends_with(length)) {
                let code = if reply.is_empty() { "1009-" } else { " " };
                reply += &format!("{code}{prefix}\tblackhole\n");
            }
        }
        reply + "0000 \n"
    }
}

/// It lives as long as this.
#[derive(Debug)]
pub(super) struct FakeBird {
    pub(super) file: PathBuf,
    pub(super) socket: PathBuf,
    conduct: Arc<Mutex<Conduct>>,
    task: Option<JoinHandle<()>>,
    _folder: TempDir,
}

impl FakeBird {
    pub(super) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (file, socket) = (folder.path().join("drover.conf"), folder.path().join("bird.ctl"));
        let mut bird = Self { file, socket, conduct: Arc::default(), task: None, _folder: folder };
        bird.restart();
        bird
    }

    /// Begins again after [`stop`](Self::stop), on the file as it is now.
    pub(super) fn restart(&mut self) {
        let listener = StdListener::bind(&self.socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        self.conduct(|conduct| conduct.loaded = fs::read_to_string(&self.file).ok());
        let (conduct, file) = (Arc::clone(&self.conduct), self.file.clone());
        self.task = Some(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(converse(stream, Arc::clone(&conduct), file.clone()));
            }
        }));
    }

    /// Ends as a killed process does: its socket stays as a file.
    pub(super) async fn stop(&mut self) {
        let task = self.task.take().unwrap();
        task.abort();
        let _ = task.await;
        let _ = fs::remove_file(&self.socket);
    }

    pub(super) fn conduct<T>(&self, change: impl FnOnce(&mut Conduct) -> T) -> T {
        change(&mut self.conduct.lock().unwrap())
    }

    /// The commands since this was last asked.
    pub(super) fn commands(&self) -> Vec<String> {
        self.conduct(|conduct| std::mem::take(&mut conduct.commands))
    }
}

impl Drop for FakeBird {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn converse(stream: UnixStream, conduct: Arc<Mutex<Conduct>>, file: PathBuf) {
    let mut stream = BufReader::new(stream);
    let greeting = conduct.lock().unwrap().greeting.unwrap_or("0001 BIRD 2.0.12 ready.");
    if stream.write_all(format!("{greeting}\n").as_bytes()).await.is_err() {
        return;
    }
    let mut command = String::new();
    while let Ok(1..) = stream.read_line(&mut command).await {
        if conduct.lock().unwrap().hangs {
            std::future::pending::<()>().await;
        }
        let answer = conduct.lock().unwrap().answer(command.trim_end(), &file);
        command.clear();
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
