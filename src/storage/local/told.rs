//! What a receiver is told about the owners of entries.
//!
//! In: the metadata of entries, in order. Out: the names of users and groups that come up in it for
//! the first time, also of those in ACLs.

use std::collections::HashSet;

use super::owners::Names;
use crate::protocol::message::{Keep, Metadata, Owner, Preserve};
use crate::storage::Found;

/// The numbers that were told, or have no name to tell.
#[derive(Debug)]
pub struct Told {
    names: Names,
    /// `None` where nobody asks for them.
    users: Option<HashSet<u32>>,
    groups: Option<HashSet<u32>>,
}

impl Told {
    pub fn new(preserve: &Preserve) -> Self {
        // The superuser is the same everywhere.
        let wanted = |keep| {
            let is_wanted = !preserve.numeric_ids && (keep != Keep::No || preserve.acls);
            is_wanted.then(|| HashSet::from([0]))
        };
        let (users, groups) = (wanted(preserve.owner), wanted(preserve.group));
        Self { names: Names::default(), users, groups }
    }

    /// What is to be told before an entry with this metadata.
    pub fn learn(&mut self, metadata: &Metadata) -> Option<Found> {
        let (mut users, mut groups) = (Vec::new(), Vec::new());
        let in_acls = metadata.attributes.iter().flat_map(|it| acl_ids(&it.name, &it.value));
        let own = [(ACL_USER, metadata.owner), (ACL_GROUP, metadata.group)];
        for (tag, id) in own.into_iter().chain(in_acls) {
            let is_user = tag == ACL_USER;
            let known = if is_user { &mut self.users } else { &mut self.groups };
            if !known.as_mut().is_some_and(|known| known.insert(id)) {
                continue;
            }
            let name = if is_user { self.names.user_name(id) } else { self.names.group_name(id) };
            if let Some(name) = name {
                (if is_user { &mut users } else { &mut groups }).push(Owner { id, name });
            }
        }
        let is_news = !users.is_empty() || !groups.is_empty();
        is_news.then_some(Found::Owners { users, groups })
    }
}

/// Tags of entries that are about a certain user or group.
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// The users and groups in an ACL, as tags and numbers: a version and entries of eight bytes
/// (acl(5)).
fn acl_ids<'a>(name: &[u8], value: &'a [u8]) -> impl Iterator<Item = (u16, u32)> + use<'a> {
    let is_acl = name.starts_with(b"system.posix_acl_");
    let entries = value.get(4..).filter(|_| is_acl).unwrap_or_default().as_chunks::<8>().0;
    let entries = entries
        .iter()
        .map(|[t0, t1, _, _, id @ ..]| (u16::from_le_bytes([*t0, *t1]), u32::from_le_bytes(*id)));
    entries.filter(|(tag, _)| matches!(*tag, ACL_USER | ACL_GROUP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::Attribute;

    fn told(preserve: &Preserve, metadata: &Metadata) -> (Vec<u32>, Vec<u32>) {
        let ids = |owners: Vec<Owner>| owners.iter().map(|owner| owner.id).collect();
        match Told::new(preserve).learn(metadata) {
            Some(Found::Owners { users, groups }) => (ids(users), ids(groups)),
            _ => (Vec::new(), Vec::new()),
        }
    }

    /// A user and a group that are known everywhere beside the superuser.
    fn known() -> (u32, u32) {
        let names = Names::default();
        let find = |is: &dyn Fn(u32) -> bool| (1..100).find(|id| is(*id)).unwrap();
        (find(&|id| names.user_name(id).is_some()), find(&|id| names.group_name(id).is_some()))
    }

    #[test]
    fn who_has_a_name_is_told_once() {
        let (user, group) = known();
        let metadata = Metadata { owner: user, group, ..Metadata::default() };
        let preserve =
            Preserve { owner: Keep::IfAllowed, group: Keep::Always, ..Preserve::default() };
        assert_eq!(told(&preserve, &metadata), (vec![user], vec![group]));
        let mut twice = Told::new(&preserve);
        assert!(twice.learn(&metadata).is_some() && twice.learn(&metadata).is_none());
        let nobody = Metadata { owner: 0, group: u32::MAX - 9, ..Metadata::default() };
        assert_eq!(told(&preserve, &nobody), (vec![], vec![]));
        let only_groups = Preserve { owner: Keep::No, ..preserve.clone() };
        assert_eq!(told(&only_groups, &metadata), (vec![], vec![group]));
        let numeric = Preserve { numeric_ids: true, ..preserve };
        assert_eq!(told(&numeric, &metadata), (vec![], vec![]));
    }

    #[test]
    fn whoever_an_acl_names_is_told() {
        let (user, group) = known();
        let entry = |tag: u16, id: u32| {
            let mut bytes = tag.to_le_bytes().to_vec();
            bytes.extend(7_u16.to_le_bytes());
            bytes.extend(id.to_le_bytes());
            bytes
        };
        let entries = [entry(1, u32::MAX), entry(ACL_USER, user), entry(ACL_GROUP, group)];
        let value = [&2_u32.to_le_bytes()[..], &entries.concat(), &[1, 2, 3]].concat();
        let attribute = |name: &str| Attribute { name: name.into(), value: value.clone() };
        let metadata = |name| Metadata { attributes: vec![attribute(name)], ..Metadata::default() };
        let preserve = Preserve { acls: true, ..Preserve::default() };
        let both = (vec![user], vec![group]);
        assert_eq!(told(&preserve, &metadata("system.posix_acl_default")), both);
        assert_eq!(told(&preserve, &metadata("user.x")), (vec![], vec![]));
        assert_eq!(acl_ids(b"system.posix_acl_access", b"").count(), 0);
    }
}
