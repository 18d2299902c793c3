//! The `fastsync` program: runs the command line and returns its exit code.

fn main() -> std::process::ExitCode {
    fastsync::cli::main()
}
