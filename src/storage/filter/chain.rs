//! What directories inherit: a list that grows at its front and shares the rest.

use std::sync::Arc;

/// Cheap to clone. The innermost directory's value comes first.
#[derive(Debug)]
pub struct Chain<T>(Option<Arc<Link<T>>>);

#[derive(Debug)]
struct Link<T> {
    value: T,
    outer: Chain<T>,
}

impl<T> Chain<T> {
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn with(self, value: T) -> Self {
        Self(Some(Arc::new(Link { value, outer: self })))
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let mut next = self.0.as_deref();
        std::iter::from_fn(move || {
            let link = next?;
            next = link.outer.0.as_deref();
            Some(&link.value)
        })
    }
}

impl<T> Clone for Chain<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Chain<T> {
    fn default() -> Self {
        Self(None)
    }
}

/// Link by link, as a deep tree would otherwise be a deep recursion.
impl<T> Drop for Chain<T> {
    fn drop(&mut self) {
        let mut next = self.0.take();
        while let Some(mut link) = next.and_then(Arc::into_inner) {
            next = link.outer.0.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_shares_its_outer_part_and_a_long_one_can_be_dropped() {
        let outer = Chain::default().with(1);
        let inner = outer.clone().with(2);
        assert_eq!(inner.iter().copied().collect::<Vec<_>>(), [2, 1]);
        assert_eq!(outer.iter().copied().collect::<Vec<_>>(), [1]);

        let long = (0..1_000_000).fold(Chain::default(), Chain::with);
        assert_eq!(long.iter().count(), 1_000_000);
    }
}
