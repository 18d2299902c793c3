//! POSIX ACLs as the kernel passes them: a version and entries of eight bytes (acl(5)).
//!
//! In: the value of an ACL's attribute, from the kernel or from a peer. Out: its entries, and the
//! value again, in an order in which equal ACLs are equal bytes.

/// The only version there is; the kernel checks it too.
const VERSION: u32 = 2;

/// Whom an entry is about, in the order in which the kernel wants the entries.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Tag {
    Owner,
    User,
    OwningGroup,
    Group,
    Mask,
    Other,
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct AclEntry {
    pub tag: Tag,
    /// The number of a user or group; of other tags it means nothing.
    pub id: u32,
    /// Three bits, as in a mode.
    pub permissions: u16,
}

/// An access control list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Acl {
    entries: Vec<AclEntry>,
}

impl Acl {
    /// `None` if the value is none that the kernel would make.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (version, rest) = value.split_first_chunk::<4>()?;
        let (entries, rest) = rest.as_chunks::<8>();
        if u32::from_le_bytes(*version) != VERSION || !rest.is_empty() {
            return None;
        }
        let entries = entries.iter().copied().map(AclEntry::parse).collect::<Option<Vec<_>>>()?;
        Some(Self { entries })
    }

    /// Calls users and groups by other numbers.
    pub fn translate(&mut self, user: impl Fn(u32) -> u32, group: impl Fn(u32) -> u32) {
        for entry in &mut self.entries {
            match entry.tag {
                Tag::User => entry.id = user(entry.id),
                Tag::Group => entry.id = group(entry.id),
                _ => {}
            }
        }
    }

    /// Takes the permissions that a mode stands for from there, as `chmod` does with a file's ACL.
    pub fn set_mode(&mut self, mode: u32) {
        let bits = |shift: u32| u16::try_from(mode >> shift & 7).unwrap_or_default();
        let group = if self.find(Tag::Mask).is_some() { Tag::Mask } else { Tag::OwningGroup };
        for entry in &mut self.entries {
            if entry.tag == Tag::Owner {
                entry.permissions = bits(6);
            } else if entry.tag == group {
                entry.permissions = bits(3);
            } else if entry.tag == Tag::Other {
                entry.permissions = bits(0);
            }
        }
    }

    /// The permission bits that it stands for.
    pub fn mode(&self) -> u32 {
        let bits = |tag| u32::from(self.find(tag).map_or(0, |entry| entry.permissions));
        let group = if self.find(Tag::Mask).is_some() { Tag::Mask } else { Tag::OwningGroup };
        bits(Tag::Owner) << 6 | bits(group) << 3 | bits(Tag::Other)
    }

    /// Whether it says no more than a mode does, so that no file system keeps it for a file.
    pub fn is_mode_only(&self) -> bool {
        let more = |entry: &AclEntry| matches!(entry.tag, Tag::User | Tag::Group | Tag::Mask);
        !self.entries.iter().any(more)
    }

    /// The attribute's value.
    pub fn to_value(&self) -> Vec<u8> {
        let mut entries = self.entries.clone();
        entries.sort_unstable();
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in entries {
            value.extend_from_slice(&entry.tag.to_raw().to_le_bytes());
            value.extend_from_slice(&entry.permissions.to_le_bytes());
            let id = if matches!(entry.tag, Tag::User | Tag::Group) { entry.id } else { u32::MAX };
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    fn find(&self, tag: Tag) -> Option<&AclEntry> {
        self.entries.iter().find(|entry| entry.tag == tag)
    }
}

impl AclEntry {
    fn parse(raw: [u8; 8]) -> Option<Self> {
        let [tag_0, tag_1, bits_0, bits_1, id @ ..] = raw;
        let tag = Tag::from_raw(u16::from_le_bytes([tag_0, tag_1]))?;
        let permissions = u16::from_le_bytes([bits_0, bits_1]);
        let has_id = matches!(tag, Tag::User | Tag::Group);
        let id = if has_id { u32::from_le_bytes(id) } else { u32::MAX };
        (permissions <= 7).then_some(Self { tag, id, permissions })
    }
}

impl Tag {
    fn from_raw(raw: u16) -> Option<Self> {
        let known =
            [Self::Owner, Self::User, Self::OwningGroup, Self::Group, Self::Mask, Self::Other];
        known.into_iter().find(|tag| tag.to_raw() == raw)
    }

    fn to_raw(self) -> u16 {
        match self {
            Self::Owner => 0x01,
            Self::User => 0x02,
            Self::OwningGroup => 0x04,
            Self::Group => 0x08,
            Self::Mask => 0x10,
            Self::Other => 0x20,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A value for tests: owner `rw-`, these users and groups, mask `rwx`, others nothing.
    pub fn value(users: &[(u32, u16)], groups: &[(u32, u16)]) -> Vec<u8> {
        let fixed = |tag, permissions| AclEntry { tag, id: u32::MAX, permissions };
        let named = |tag| {
            move |(id, permissions): &(u32, u16)| AclEntry {
                tag,
                id: *id,
                permissions: *permissions,
            }
        };
        let mut entries = vec![fixed(Tag::Owner, 6), fixed(Tag::OwningGroup, 4)];
        entries.extend(users.iter().map(named(Tag::User)));
        entries.extend(groups.iter().map(named(Tag::Group)));
        entries.extend([fixed(Tag::Mask, 7), fixed(Tag::Other, 0)]);
        Acl { entries }.to_value()
    }

    #[test]
    fn an_acl_is_read_and_written_alike() {
        let bytes = value(&[(7, 4), (5, 6)], &[(9, 1)]);
        let mut acl = Acl::parse(&bytes).unwrap();
        assert_eq!(acl.to_value(), bytes);
        assert_eq!((acl.mode(), acl.is_mode_only()), (0o670, false));
        acl.set_mode(0o751);
        assert_eq!(acl.mode(), 0o751);
        acl.translate(|id| 100 - id, |id| id + 1);
        let entries = Acl::parse(&acl.to_value()).unwrap().entries;
        let ids: Vec<_> = entries.iter().map(|entry| entry.id).filter(|id| *id < 1000).collect();
        assert_eq!(ids, [93, 95, 10], "users are in order again");
    }

    #[test]
    fn nonsense_is_refused() {
        let good = value(&[(7, 4)], &[]);
        for at in [0, 4, 6] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(Acl::parse(&bad), None, "byte {at}");
        }
        assert_eq!(Acl::parse(&good[..good.len() - 1]), None);
        assert_eq!(Acl::parse(b""), None);
    }
}
