//! Secret keys and their use: authenticated encryption (XChaCha20-Poly1305), derivation (BLAKE3) and signatures
//! (ed25519). No other code of the crate uses a cipher.
//!
//! Keys are wiped when they are dropped, live in one place each (moving one moves a pointer), and are never shown. A
//! process that holds one cannot be dumped.

use crate::clock;
use crate::error::{Error, Result};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use std::sync::Once;
use zeroize::Zeroize;

/// Length of a key in bytes.
pub(crate) const KEY_LEN: usize = 32;
/// Length of a nonce in bytes; long enough to be drawn at random forever.
pub(crate) const NONCE_LEN: usize = 24;
/// Length of an authentication tag in bytes.
pub(crate) const TAG_LEN: usize = 16;
/// Bytes that sealing adds.
pub const SEAL_LEN: usize = NONCE_LEN + TAG_LEN;
/// Length of a signature in bytes.
pub(crate) const SIGNATURE_LEN: usize = 64;

/// A secret key.
pub struct SecretKey(Box<[u8; KEY_LEN]>);

impl SecretKey {
    /// A new key from the kernel's randomness.
    pub fn random() -> Self {
        Self::take(&mut clock::random_bytes())
    }

    /// Takes a key over and wipes the source.
    pub fn take(bytes: &mut [u8; KEY_LEN]) -> Self {
        forbid_dumps();
        let mut key = Box::new([0; KEY_LEN]);
        key.copy_from_slice(bytes);
        bytes.zeroize();
        Self(key)
    }

    /// A copy of the key.
    pub fn copied(&self) -> Self {
        let mut bytes = *self.0;
        Self::take(&mut bytes)
    }

    /// The key's bytes.
    pub fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The key for one purpose, which `context` permanently names.
    pub fn derive(&self, context: &str) -> Self {
        Self::take(&mut blake3::derive_key(context, &*self.0))
    }

    /// Encrypts `plain` and binds it to `bound`: a random nonce, then the ciphertext, then its tag.
    ///
    /// # Errors
    /// `Invalid` for more than the cipher takes, 256 GiB.
    pub fn seal(&self, bound: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let nonce = clock::random_bytes::<NONCE_LEN>();
        let mut sealed = Vec::with_capacity(plain.len() + SEAL_LEN);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let body = &mut sealed[NONCE_LEN..];
        let cipher = XChaCha20Poly1305::new((&*self.0).into());
        let tag = cipher
            .encrypt_inout_detached(&XNonce::from(nonce), bound, body.into())
            .map_err(|_| Error::invalid("too long to encrypt"))?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// Opens bytes that [`Self::seal`] made under this key and bound to `bound`; `None` for anything else.
    pub fn open(&self, bound: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let (body, tag) = rest.split_last_chunk::<TAG_LEN>()?;
        let mut plain = body.to_vec();
        let cipher = XChaCha20Poly1305::new((&*self.0).into());
        let opened = cipher.decrypt_inout_detached(
            &XNonce::from(*nonce),
            bound,
            plain.as_mut_slice().into(),
            &Tag::from(*tag),
        );
        opened.is_ok().then_some(plain)
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(not shown)")
    }
}

/// The key that a domain signs with.
pub(crate) struct SignKey(SigningKey);

impl SignKey {
    /// The key of a seed.
    pub(crate) fn of(seed: &SecretKey) -> Self {
        Self(SigningKey::from_bytes(seed.bytes()))
    }

    /// Signs.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.0.sign(message).to_bytes()
    }

    /// The key that verifies its signatures.
    pub(crate) fn verify_key(&self) -> VerifyKey {
        VerifyKey(self.0.verifying_key().to_bytes())
    }
}

impl std::fmt::Debug for SignKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignKey(not shown)")
    }
}

/// The public key that verifies a domain's signatures.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VerifyKey([u8; KEY_LEN]);

impl VerifyKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Whether `signature` is this key's over `message`. Weak keys and malleable signatures are refused.
    pub fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
        let signature = Signature::from_bytes(signature);
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
    }
}

impl std::fmt::Display for VerifyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        crate::id::write_hex(f, &self.0)
    }
}

impl std::fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifyKey({self})")
    }
}

impl std::str::FromStr for VerifyKey {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        crate::id::parse_hex(text).map(Self)
    }
}

/// Disables core dumps of this process; only a privileged process may then read its memory.
fn forbid_dumps() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let dumpable = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
        let core = rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
        if let Err(error) = dumpable.and(core) {
            tracing::warn!(%error, "this process holds keys and its memory may be dumped");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::flipped;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_is_sealed_opens_under_its_key_and_bound_to_its_place(
            plain in prop::collection::vec(any::<u8>(), 0..300),
            bound in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let (key, other) = (SecretKey::random(), SecretKey::random());
            let sealed = key.seal(&bound, &plain).unwrap();
            prop_assert_eq!(sealed.len(), plain.len() + SEAL_LEN);
            prop_assert_eq!(key.open(&bound, &sealed), Some(plain.clone()));
            prop_assert_eq!(other.open(&bound, &sealed), None);
            prop_assert_eq!(key.derive("other").open(&bound, &sealed), None);
            prop_assert_eq!(key.open(&[&*bound, &[0]].concat(), &sealed), None);
            for bit in 0..sealed.len() * 8 {
                prop_assert_eq!(key.open(&bound, &flipped(&sealed, bit)), None);
            }
            for len in 0..sealed.len() {
                prop_assert_eq!(key.open(&bound, &sealed[..len]), None);
            }
            prop_assert!(key.seal(&bound, &plain).unwrap() != sealed, "a nonce came twice");
        }
    }

    #[test]
    fn a_signature_is_of_one_key_over_one_message() {
        let seed = SecretKey::random();
        let (key, other) = (SignKey::of(&seed), SignKey::of(&SecretKey::random()));
        let signature = key.sign(b"message");
        assert!(key.verify_key().verifies(b"message", &signature));
        assert!(!key.verify_key().verifies(b"massage", &signature));
        assert!(!other.verify_key().verifies(b"message", &signature));
        for bit in 0..SIGNATURE_LEN * 8 {
            let damaged = flipped(&signature, bit).try_into().unwrap();
            assert!(!key.verify_key().verifies(b"message", &damaged), "bit {bit}");
        }
        assert_eq!(SignKey::of(&seed.copied()).verify_key(), key.verify_key());
        assert_eq!(key.verify_key().to_string().parse::<VerifyKey>().unwrap(), key.verify_key());
    }

    #[test]
    fn a_process_with_a_key_cannot_be_dumped_and_shows_none() {
        let key = SecretKey::take(&mut [0xa7; KEY_LEN]);
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        let limit = rustix::process::getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
        for shown in [format!("{key:?}"), format!("{:?}", SignKey::of(&key))] {
            assert!(!shown.contains("a7") && !shown.contains("167"), "{shown}");
        }
    }
}
