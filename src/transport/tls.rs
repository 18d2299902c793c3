//! Who the two ends of a connection are: a certificate for each session and each end, made here,
//! handed to the other end over ssh, and accepted by nobody else.
//!
//! In: an [`Identity`] and the peer's certificate. Out: rustls configurations that speak TLS 1.3
//! only, ask both ends for their certificate, and leave no ticket to resume from. No authority is
//! involved and no name is checked: the bytes of the certificate are the name (R6).
//!
//! Rules: `protocol-spec/06-security.md`.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerMisbehaved, ServerConfig, SignatureScheme, SupportedCipherSuite,
};

use super::TransportError;

/// The protocol's name inside TLS.
pub const ALPN: &[u8] = b"fastsync/1";

/// This end's certificate and key, which live as long as the session and are never written down.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Identity {
    /// Makes a new key pair, and a certificate that it signs itself.
    pub fn generate() -> Result<Self, TransportError> {
        let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()])
            .map_err(|error| TransportError::Tls(format!("cannot make a certificate: {error}")))?;
        let key = made.signing_key.serialize_der().into();
        Ok(Self { certificate: made.cert.into(), key })
    }

    /// The certificate in DER, for the peer to pin.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The configuration of the end that dials.
    pub fn client_config(&self, peer: &[u8]) -> Result<Arc<ClientConfig>, TransportError> {
        self.client_config_with(SUITES, peer).map(Arc::new).map_err(|error| tls_error(&error))
    }

    /// The configuration of the end that listens.
    pub fn server_config(&self, peer: &[u8]) -> Result<Arc<ServerConfig>, TransportError> {
        self.server_config_with(SUITES, peer).map(Arc::new).map_err(|error| tls_error(&error))
    }

    fn client_config_with(
        &self,
        suites: &[SupportedCipherSuite],
        peer: &[u8],
    ) -> Result<ClientConfig, Error> {
        let provider = provider(suites);
        let pin = Arc::new(Pin::new(peer, &provider));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(pin)
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key().into())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        config.enable_secret_extraction = true;
        Ok(config)
    }

    fn server_config_with(
        &self,
        suites: &[SupportedCipherSuite],
        peer: &[u8],
    ) -> Result<ServerConfig, Error> {
        let provider = provider(suites);
        let pin = Arc::new(Pin::new(peer, &provider));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(pin)
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key().into())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.enable_secret_extraction = true;
        Ok(config)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

/// The name that the client asks for, which no verifier looks at.
pub(super) fn server_name() -> Result<ServerName<'static>, TransportError> {
    ServerName::try_from(SERVER_NAME).map_err(|error| TransportError::Tls(error.to_string()))
}

/// For `map_err`.
pub(super) fn tls_error(error: &Error) -> TransportError {
    TransportError::Tls(error.to_string())
}

fn provider(suites: &[SupportedCipherSuite]) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { cipher_suites: suites.to_vec(), ..default_provider() })
}

/// Accepts one certificate, byte for byte, on either side.
///
/// The bytes alone prove nothing, since certificates are sent in the open to whoever connects: that
/// the peer holds the key is shown by its signature over this handshake, which rustls' own
/// functions check here as they do for any certificate.
#[derive(Debug)]
struct Pin {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl Pin {
    fn new(peer: &[u8], provider: &Arc<CryptoProvider>) -> Self {
        let certificate = CertificateDer::from(peer.to_vec());
        Self { certificate, provider: Arc::clone(provider) }
    }

    fn check(&self, end: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        if *end == self.certificate && others.is_empty() {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Pin {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

/// The name that certificates have, which no verifier looks at.
pub(super) const SERVER_NAME: &str = "fastsync";

/// What a proof's binding is exported as (SEC-7).
pub(super) const EXPORTER: &[u8] = b"EXPORTER-fastsync-channel";

/// AES-128 first, which rustls does not do: it is as safe here, and seals 1.29 times as fast.
const SUITES: &[SupportedCipherSuite] = &[
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

#[cfg(test)]
pub(super) mod tests {
    use std::io::Read as _;

    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::{ClientConnection, Connection, ServerConnection};

    use super::*;

    /// Two ends that agreed on one suite of ours, the dialler first.
    pub(in super::super) fn connected(suite: usize) -> (Connection, Connection) {
        let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let suites = &SUITES[suite..=suite];
        let client = one.client_config_with(suites, other.certificate()).unwrap();
        let server = other.server_config_with(suites, one.certificate()).unwrap();
        shake(client, server).unwrap()
    }

    fn shake(
        client: ClientConfig,
        server: ServerConfig,
    ) -> Result<(Connection, Connection), Error> {
        let name = server_name().unwrap();
        let mut client: Connection = ClientConnection::new(Arc::new(client), name)?.into();
        let mut server: Connection = ServerConnection::new(Arc::new(server))?.into();
        while client.is_handshaking() || server.is_handshaking() {
            carry(&mut client, &mut server)?;
            carry(&mut server, &mut client)?;
        }
        Ok((client, server))
    }

    fn carry(from: &mut Connection, to: &mut Connection) -> Result<(), Error> {
        let mut wire = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut wire).unwrap();
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            to.read_tls(&mut wire).unwrap();
            to.process_new_packets()?;
        }
        Ok(())
    }

    /// R6: AES-128-GCM is what two of us agree on, and no ticket is left behind.
    #[test]
    fn both_ends_know_each_other() {
        let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let client = one.client_config_with(SUITES, other.certificate()).unwrap();
        let server = other.server_config_with(SUITES, one.certificate()).unwrap();
        let (mut client, server) = shake(client, server).unwrap();
        let suite = client.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(client.alpn_protocol(), Some(ALPN));
        assert_eq!(server.peer_certificates().unwrap()[0].as_ref(), one.certificate());
        assert!(client.reader().read(&mut [0; 16]).is_err(), "nothing came but the handshake");
        assert!(!server.wants_write());
    }

    /// R6, T65: neither end talks to a certificate that it was not told of.
    #[test]
    fn a_strange_certificate_is_refused_by_either_end() {
        let identity = || Identity::generate().unwrap();
        let (one, other, stranger) = (identity(), identity(), identity());
        for (client_pin, server_pin) in [(&stranger, &one), (&other, &stranger)] {
            let client = one.client_config_with(SUITES, client_pin.certificate()).unwrap();
            let server = other.server_config_with(SUITES, server_pin.certificate()).unwrap();
            let refused = shake(client, server).unwrap_err();
            assert!(matches!(refused, Error::InvalidCertificate(_)), "{refused}");
        }
    }

    /// R6: who copies the certificate, which anyone can see, still lacks the key.
    #[test]
    fn the_right_certificate_without_its_key_is_refused() {
        let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let client = one.client_config_with(SUITES, other.certificate()).unwrap();
        let mut server = other.server_config_with(SUITES, one.certificate()).unwrap();
        let key = Identity::generate().unwrap().key.clone_key();
        let key = default_provider().key_provider.load_private_key(key.into()).unwrap();
        let copied = CertifiedKey::new(vec![other.certificate.clone()], key);
        server.cert_resolver = Arc::new(SingleCertAndKey::from(copied));
        let refused = shake(client, server).unwrap_err();
        assert_eq!(refused, Error::InvalidCertificate(CertificateError::BadSignature));
    }
}
