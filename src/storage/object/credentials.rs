//! Who we are at S3: environment, profiles, single sign-on, web identity, containers and instances, in
//! the order of Amazon's own tools; and signatures (Signature Version 4).

use std::sync::Arc;

use http::request::Parts;
use reqsign_aws_v4::{
    Credential, DefaultCredentialProvider, RequestSigner, StaticCredentialProvider,
};
use reqsign_command_execute_tokio::TokioCommandExecute;
use reqsign_core::{Context, ErrorKind, OsEnv, Signer};
use reqsign_file_read_tokio::TokioFileRead;
use reqsign_http_send_reqwest::ReqwestHttpSend;

use super::s3::S3Config;
use crate::storage::http::client::Sign;
use crate::storage::remote::{Class, Fault};

/// Signs requests for a region. `http` is what asks for credentials where they come from a network.
pub fn signer(http: reqwest::Client, region: &str, config: &S3Config) -> Sign {
    let context = Context::new()
        .with_file_read(TokioFileRead)
        .with_http_send(ReqwestHttpSend::new(http))
        .with_command_execute(TokioCommandExecute)
        .with_env(OsEnv);
    let sign = RequestSigner::new("s3", region);
    let signer: Signer<Credential> = if let Some(keys) = &config.keys {
        Signer::new(context, StaticCredentialProvider::new(&keys.access, &keys.secret), sign)
    } else {
        let mut provider = DefaultCredentialProvider::builder();
        if let Some(profile) = &config.profile {
            provider = provider.with_profile(profile);
        }
        Signer::new(context, provider.build(), sign)
    };
    let signer = Arc::new(signer);
    Arc::new(move |parts: &mut Parts| {
        let signer = Arc::clone(&signer);
        Box::pin(async move {
            signer.sign(parts, None).await.map_err(|error| {
                // Its text may say where a credential is, and never what it is.
                let text = match error.kind() {
                    ErrorKind::CredentialInvalid | ErrorKind::ConfigInvalid => format!(
                        "there are no credentials ({error}); set AWS_ACCESS_KEY_ID and \
                         AWS_SECRET_ACCESS_KEY, name a profile with --aws-profile, or use --anonymous"
                    ),
                    _ => format!("the request cannot be signed: {error}"),
                };
                Fault::new(Class::Credentials, text)
            })
        })
    })
}
