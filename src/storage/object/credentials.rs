//! Who we are at object stores, and signatures. Everywhere it is what the store's own tools would find,
//! in their order.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;
use http::{header, uri};
use reqsign_aws_v4 as amazon;
use reqsign_azure_storage as azure;
use reqsign_command_execute_tokio::TokioCommandExecute;
use reqsign_core::{
    Context, Env, ErrorKind, OsEnv, ProvideCredential, ProvideCredentialChain, SignRequest, Signer,
    SigningCredential,
};
use reqsign_file_read_tokio::TokioFileRead;
use reqsign_google as google;
use reqsign_http_send_reqwest::ReqwestHttpSend;

use super::s3::S3Config;
use crate::storage::http::client::Sign;
use crate::storage::remote::{Class, Fault};

/// At S3, for a region: environment, profiles, single sign-on, web identity, containers and instances;
/// Signature Version 4. `http` is what asks for credentials where they come from a network.
///
/// # Errors
///
/// [`Class::Credentials`] if the environment has half of a key, and nobody says where another is.
pub fn amazon(http: reqwest::Client, region: &str, config: &S3Config) -> Result<Sign, Fault> {
    let remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile with \
                  --aws-profile, or use --anonymous";
    let signer = amazon::RequestSigner::new("s3", region);
    if let Some(keys) = &config.keys {
        let given = amazon::StaticCredentialProvider::new(&keys.access, &keys.secret);
        return Ok(signing(http, given, signer, remedy));
    }
    if config.profile.is_none() {
        refuse_half_a_key(|name| Variables.var(name))?;
    }
    let mut provider = amazon::DefaultCredentialProvider::builder();
    if let Some(profile) = &config.profile {
        provider = provider.with_profile(profile);
    }
    Ok(signing(http, provider.build(), signer, remedy))
}

/// At Google Cloud Storage: the application default credentials, which are a file named by the
/// environment (a service account's key, an account of elsewhere), that of `gcloud auth
/// application-default login`, and the metadata server of Google's machines; bearer tokens.
pub fn google(http: reqwest::Client) -> Sign {
    let remedy = "set GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account, run \
                  `gcloud auth application-default login`, or use --anonymous";
    let scope = "https://www.googleapis.com/auth/devstorage.read_write";
    let signer = google::RequestSigner::new("storage").with_scope(scope);
    signing(http, google::DefaultCredentialProvider::new(), signer, remedy)
}

/// At Azure Blob Storage: an account's key, a shared access signature, and after them what Entra ID
/// knows: a client's secret or certificate, a workload's identity, Azure's own login, a managed
/// identity.
pub fn azure(http: reqwest::Client, keys: &AzureKeys, account: Option<&str>) -> AzureSigns {
    let remedy = "set AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, log \
                  in with `az login`, or use --anonymous";
    let given = match (keys, account) {
        (AzureKeys { key: Some(key), .. }, Some(account)) => {
            Some(azure::StaticCredentialProvider::new_shared_key(account, key))
        }
        (AzureKeys { sas: Some(sas), .. }, _) => {
            Some(azure::StaticCredentialProvider::new_sas_token(sas))
        }
        _ => None,
    };
    let chain = match given {
        // Who has a key means it: no other is looked for when it turns out to be wrong.
        Some(given) => ProvideCredentialChain::new().push(given),
        None => ProvideCredentialChain::new().push(azure::DefaultCredentialProvider::new()),
    };
    // What a link admits to is reading.
    let signer = azure::RequestSigner::new().with_service_sas_permissions("r");
    let signer = Arc::new(signer_of(http, chain, signer));
    AzureSigns { requests: signs(Arc::clone(&signer), remedy, None), links: links(signer, remedy) }
}

/// Who signs at Azure.
pub struct AzureSigns {
    pub requests: Sign,
    /// For whoever is to read a blob by its URL. What admits to it is in the query or, of what cannot be
    /// there, in the header of authorization.
    pub links: Sign,
}

/// An account's key makes signatures for a while, a signature of the user's is one already, and a token
/// goes beside the URL.
fn links(signer: Arc<Signer<azure::Credential>>, remedy: &'static str) -> Sign {
    let (in_query, beside) =
        (signs(Arc::clone(&signer), remedy, Some(LINK)), signs(signer, remedy, None));
    Arc::new(move |parts: &mut Parts| {
        let (in_query, beside) = (Arc::clone(&in_query), Arc::clone(&beside));
        Box::pin(async move {
            let plain = parts.clone();
            if in_query(parts).await.is_ok() {
                return Ok(());
            }
            *parts = plain;
            beside(parts).await
        })
    })
}

/// How long a link admits.
const LINK: Duration = Duration::from_hours(1);

/// The secrets of an account of Azure's.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct AzureKeys {
    pub key: Option<String>,
    pub sas: Option<String>,
}

impl fmt::Debug for AzureKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzureKeys").finish_non_exhaustive()
    }
}

/// What tells an account of Azure's: its name, where it is, and its secrets.
#[derive(Debug, Default)]
pub struct AzureAccount {
    pub name: Option<String>,
    pub endpoint: Option<String>,
    pub keys: AzureKeys,
}

impl AzureAccount {
    /// What the environment says; `account` prevails over the account that it names.
    ///
    /// # Errors
    ///
    /// [`Class::Credentials`] for a key that cannot be one.
    pub fn from_environment(account: Option<&str>) -> Result<Self, Fault> {
        Self::from_variables(account, |name| Variables.var(name))
    }

    fn from_variables(
        account: Option<&str>,
        get: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Fault> {
        if let Some(text) = get("AZURE_STORAGE_CONNECTION_STRING") {
            let found = Self::from_connection_string(&text);
            if account.is_none() || found.name.as_deref() == account {
                let named = "AccountKey in AZURE_STORAGE_CONNECTION_STRING";
                return check_key(found.keys.key.as_deref(), named).map(|()| found);
            }
        }
        let first = |names: &[&str]| names.iter().find_map(|name| get(name));
        let names = ["AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY"];
        let key = names.iter().find_map(|name| get(name).map(|key| (*name, key)));
        if let Some((name, key)) = &key {
            check_key(Some(key), name)?;
        }
        let keys = AzureKeys {
            key: key.map(|(_, key)| key),
            sas: get("AZURE_STORAGE_SAS_TOKEN").map(|it| it.trim_start_matches('?').to_owned()),
        };
        let named = first(&["AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"]);
        Ok(Self { name: account.map(str::to_owned).or(named), endpoint: None, keys })
    }

    /// Source: "Configure Azure Storage connection strings", Microsoft.
    fn from_connection_string(text: &str) -> Self {
        let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
        let value = |wanted: &str| {
            let mut found = pairs.clone().filter(|(name, _)| name.trim() == wanted);
            found.next().map(|(_, value)| value.trim().to_owned()).filter(|it| !it.is_empty())
        };
        let name = value("AccountName");
        let protocol = value("DefaultEndpointsProtocol").unwrap_or_else(|| "https".to_owned());
        let derived =
            |suffix: String| Some(format!("{protocol}://{}.blob.{suffix}", name.as_ref()?));
        let endpoint = value("BlobEndpoint").or_else(|| value("EndpointSuffix").and_then(derived));
        let keys = AzureKeys { key: value("AccountKey"), sas: value("SharedAccessSignature") };
        Self { name, endpoint, keys }
    }
}

/// An account's key is base64. What it is instead is not told.
fn check_key(key: Option<&str>, named: &str) -> Result<(), Fault> {
    if key.is_none_or(|key| STANDARD.decode(key).is_ok()) {
        return Ok(());
    }
    let text = format!(
        "{named} is no key of a storage account, as it is not base64; copy the whole of it, from \
         `az storage account keys list` for example"
    );
    Err(Fault::new(Class::Credentials, text))
}

/// Signs requests with what a provider finds. `remedy` says what to do if it finds nothing.
fn signing<C: SigningCredential>(
    http: reqwest::Client,
    provider: impl ProvideCredential<Credential = C> + 'static,
    signer: impl SignRequest<Credential = C> + 'static,
    remedy: &'static str,
) -> Sign {
    signs(Arc::new(signer_of(http, provider, signer)), remedy, None)
}

/// The environment, in which an empty variable counts as not set.
#[derive(Debug)]
struct Variables;

impl Env for Variables {
    fn var(&self, name: &str) -> Option<String> {
        OsEnv.var(name).filter(|value| !value.is_empty())
    }

    fn vars(&self) -> HashMap<String, String> {
        OsEnv.vars().into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }

    fn home_dir(&self) -> Option<PathBuf> {
        OsEnv.home_dir()
    }
}

/// With half of a key, Amazon's tools look for no other either.
fn refuse_half_a_key(get: impl Fn(&str) -> Option<String>) -> Result<(), Fault> {
    let [id, secret] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    if get(id).is_none() || get(secret).is_some() {
        return Ok(());
    }
    let text = format!("{id} is set, and {secret} is not; set both, or none to use a profile");
    Err(Fault::new(Class::Credentials, text))
}

fn signer_of<C: SigningCredential>(
    http: reqwest::Client,
    provider: impl ProvideCredential<Credential = C> + 'static,
    signer: impl SignRequest<Credential = C> + 'static,
) -> Signer<C> {
    let context = Context::new()
        .with_file_read(TokioFileRead)
        .with_http_send(ReqwestHttpSend::new(http))
        .with_command_execute(TokioCommandExecute)
        .with_env(Variables);
    Signer::new(context, provider, signer)
}

/// Signs in the headers or, for a while, in the URL.
fn signs<C: SigningCredential>(
    signer: Arc<Signer<C>>,
    remedy: &'static str,
    expires: Option<Duration>,
) -> Sign {
    Arc::new(move |parts: &mut Parts| {
        let signer = Arc::clone(&signer);
        Box::pin(async move {
            signer.sign(parts, expires).await.map_err(|error| {
                // Its text may say where a credential is, and never what it is.
                let text = match error.kind() {
                    ErrorKind::CredentialInvalid | ErrorKind::ConfigInvalid => {
                        format!("there are no credentials ({error}); {remedy}")
                    }
                    _ => format!("the request cannot be signed: {error}"),
                };
                Fault::new(Class::Credentials, text)
            })?;
            refuse_open_token(parts)
        })
    })
}

/// Who reads a bearer token on its way can use it: it travels encrypted or not at all.
fn refuse_open_token(parts: &Parts) -> Result<(), Fault> {
    let is_token = parts.headers.get(header::AUTHORIZATION);
    let is_token = is_token.is_some_and(|it| it.as_bytes().starts_with(b"Bearer "));
    if !is_token || parts.uri.scheme() == Some(&uri::Scheme::HTTPS) {
        return Ok(());
    }
    let text = "tokens are sent to https:// endpoints only; use one, or --anonymous";
    Err(Fault::new(Class::Credentials, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(asked: Option<&str>, variables: &[(&str, &str)]) -> AzureAccount {
        let get = |name: &str| {
            let found = variables.iter().find(|(own, _)| *own == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        AzureAccount::from_variables(asked, get).unwrap()
    }

    #[test]
    fn a_connection_string_is_taken_apart() {
        let text = "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=a2V5;\
                    EndpointSuffix=core.windows.net";
        let found = account(None, &[("AZURE_STORAGE_CONNECTION_STRING", text)]);
        assert_eq!(found.name.as_deref(), Some("acc"));
        assert_eq!(found.endpoint.as_deref(), Some("https://acc.blob.core.windows.net"));
        assert_eq!(found.keys.key.as_deref(), Some("a2V5"));
        assert!(!format!("{found:?}").contains("a2V5"), "secrets are not shown");
        let text = "BlobEndpoint=http://h:1/acc;SharedAccessSignature=sv=1&sig=x%3D";
        let found = account(None, &[("AZURE_STORAGE_CONNECTION_STRING", text)]);
        assert_eq!(found.endpoint.as_deref(), Some("http://h:1/acc"));
        assert_eq!(found.keys.sas.as_deref(), Some("sv=1&sig=x%3D"));
    }

    #[test]
    fn a_key_that_is_none_is_told_by_its_variable() {
        for name in ["AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY"] {
            let get = |wanted: &str| (wanted == name).then(|| "no base64!".to_owned());
            let fault = AzureAccount::from_variables(None, get).unwrap_err();
            assert_eq!(fault.class, Class::Credentials);
            assert!(fault.text.starts_with(name) && !fault.text.contains("no base64!"), "{fault}");
        }
        let text = "AccountName=acc;AccountKey=no base64!";
        let get = |name: &str| (name == "AZURE_STORAGE_CONNECTION_STRING").then(|| text.to_owned());
        let fault = AzureAccount::from_variables(None, get).unwrap_err();
        assert!(fault.text.contains("AccountKey in AZURE_STORAGE_CONNECTION_STRING"), "{fault}");
    }

    #[test]
    fn half_of_a_key_is_told() {
        let told = |set: &'static [&str]| {
            refuse_half_a_key(|name| set.contains(&name).then(|| "x".to_owned()))
        };
        assert!(told(&[]).is_ok() && told(&["AWS_SECRET_ACCESS_KEY"]).is_ok());
        assert!(told(&["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]).is_ok());
        let fault = told(&["AWS_ACCESS_KEY_ID"]).unwrap_err();
        assert!(fault.text.contains("AWS_SECRET_ACCESS_KEY is not"), "{fault}");
    }

    #[test]
    fn an_account_that_is_asked_for_is_not_that_of_the_environment() {
        let variables = [
            ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=one;AccountKey=MQ=="),
            ("AZURE_STORAGE_ACCOUNT", "two"),
            ("AZURE_STORAGE_KEY", "Mg=="),
        ];
        let found = account(Some("three"), &variables);
        assert_eq!(
            (found.name.as_deref(), found.keys.key.as_deref()),
            (Some("three"), Some("Mg=="))
        );
        let found = account(None, &variables);
        assert_eq!((found.name.as_deref(), found.keys.key.as_deref()), (Some("one"), Some("MQ==")));
    }

    /// Whatever admits us admits the service to one blob.
    #[tokio::test]
    async fn a_link_admits_whoever_has_it() {
        let link = async |given: azure::StaticCredentialProvider| {
            let signer = azure::RequestSigner::new().with_service_sas_permissions("r");
            let signer = Arc::new(signer_of(reqwest::Client::new(), given, signer));
            let url = "https://acc.blob.core.windows.net/con/a/b";
            let (mut parts, ()) = http::Request::get(url).body(()).unwrap().into_parts();
            links(signer, "")(&mut parts).await.unwrap();
            let authorization = parts.headers.get(header::AUTHORIZATION).cloned();
            (parts.uri.query().unwrap_or_default().to_owned(), authorization)
        };
        let (query, authorization) =
            link(azure::StaticCredentialProvider::new_shared_key("acc", "a2V5")).await;
        assert!(query.contains("sig=") && query.contains("sp=r&"), "{query}");
        assert_eq!(authorization, None);
        let (query, authorization) =
            link(azure::StaticCredentialProvider::new_sas_token("sv=1&sig=x")).await;
        assert_eq!((query.as_str(), authorization), ("sv=1&sig=x", None));
        let (query, authorization) =
            link(azure::StaticCredentialProvider::new_bearer_token("t")).await;
        assert_eq!((query.as_str(), authorization.unwrap().as_bytes()), ("", &b"Bearer t"[..]));
    }

    #[test]
    fn tokens_travel_encrypted() {
        let checked = |uri: &str, authorization: &str| {
            let request = http::Request::get(uri).header("authorization", authorization);
            refuse_open_token(&request.body(()).unwrap().into_parts().0)
        };
        assert!(checked("https://h/", "Bearer x").is_ok());
        assert!(checked("http://h/", "Bearer x").is_err());
        assert!(checked("http://h/", "SharedKey a:x").is_ok());
    }
}
