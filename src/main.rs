use fastsync::engine::{self, Watch, job::*};
use std::sync::Arc;
fn main() -> std::process::ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let args: Vec<String> = std::env::args().collect();
    let code = runtime.block_on(async move {
        if args[1] == "agent" { return engine::agent::run().await; }
        let (tx, rx) = flume::unbounded();
        std::thread::spawn(move || while let Ok(e) = rx.recv() { if !matches!(e, engine::event::Event::Ended(ref r) if !matches!(r.outcome, fastsync::protocol::message::Outcome::Failed(_))) { eprintln!("{e:?}"); } });
        let (_s, stop) = tokio::sync::watch::channel(false);
        let watch = Watch { progress: Arc::default(), events: tx, stop };
        let place = |s: &str| match s.split_once(':') { Some((h, p)) => Place::remote(h, p), None => Place::Local(s.into()) };
        let n = args.len();
        let job = if args[1] == "push" { Job::push(args[2..n-1].iter().map(|s| s.into()).collect(), place(&args[n-1])) }
            else { match place(&args[2]) { Place::Remote{host, path} => Job::pull(Some(host), vec![path], args[n-1].clone().into()), Place::Local(p) => Job::pull(None, vec![p.to_str().unwrap().into()], args[n-1].clone().into()) } };
        let mut launch = Launch::default();
        if let Ok(f) = std::env::var("SSHF") { launch.ssh_arguments = vec!["-F".into(), f.into()]; launch.agent_path = Some(std::env::current_exe().unwrap().to_str().unwrap().into()); }
        let mut config = TransferConfig::default();
        if std::env::var("PLAIN").is_ok() { config.encrypt = false; }
        if let Ok(n) = std::env::var("N") { config.streams = n.parse().unwrap(); }
        match engine::run(job.with_launch(launch).with_config(config), watch).await { Ok(r) => { eprintln!("{r:?}"); 0 } Err(e) => { eprintln!("error: {e}"); 1 } }
    });
    runtime.shutdown_background();
    code.into()
}
