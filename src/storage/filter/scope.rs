//! What is in force in one directory.
//!
//! In: the compiled rules of a job, and the per-directory files on the way down. Out: decisions.

use std::io;
use std::sync::Arc;

use super::chain::Chain;
use super::error::{Excess, FilterError, Problem};
use super::gitignore::{self, Ignores};
use super::pattern::{Pattern, Subject};
use super::rule::{Match, Merge, Modifiers, Statement};
use super::text::Entries;
use super::{FilterOptions, Job, MAX_MERGES, MAX_RULES, MAX_TEXT_LEN, Prefix, Side};

/// Gives the content of a file in the directory that is entered, by its name.
pub type Read<'a> = dyn FnMut(&[u8]) -> io::Result<Option<Vec<u8>>> + 'a;

/// The rules in force in one directory. Cheap to clone and to keep: where a directory has no rules
/// of its own, it shares its parent's.
#[derive(Clone, Debug)]
pub struct Scope(Arc<State>);

#[derive(Clone, Debug)]
struct State {
    job: Arc<Job>,
    /// The absolute path of the transfer's root without the slashes around it.
    root: Arc<[u8]>,
    /// The kinds of per-directory files, those of the job first. One that a per-directory file
    /// names comes after the kind of that file, so that following them comes to an end.
    slots: Vec<Slot>,
    ignores: Chain<Ignores>,
    /// The lines behind `ignores`.
    ignore_lines: usize,
    is_removed: bool,
}

/// A kind of per-directory files, and what was read from them.
#[derive(Clone, Debug)]
struct Slot {
    merge: Arc<Merge>,
    files: Chain<File>,
    /// The rules in `files`.
    rules: usize,
}

/// The rules of one per-directory file.
#[derive(Debug)]
struct File {
    /// The path of its directory, where its anchored patterns begin.
    base: Vec<u8>,
    items: Vec<Item>,
}

/// A rule, or the place of the rules of per-directory files.
#[derive(Debug)]
pub enum Item {
    Rule(Rule),
    /// By the index of the slot.
    Merge(usize),
}

/// A compiled rule.
#[derive(Debug)]
pub struct Rule {
    action: Prefix,
    is_negated: bool,
    modifiers: Modifiers,
    pattern: Pattern,
}

impl Scope {
    pub(super) fn new(job: Arc<Job>, root: &[u8]) -> Self {
        let root = root.strip_prefix(b"/").unwrap_or(root);
        let root = root.strip_suffix(b"/").unwrap_or(root).into();
        let slots = job.merges.iter().map(Slot::new).collect();
        let ignores = Chain::default();
        Self(Arc::new(State { job, root, slots, ignores, ignore_lines: 0, is_removed: false }))
    }

    /// The scope inside a directory, to be asked about what is in it; also for the root.
    ///
    /// `path` is relative to the transfer's root, with components joined by slashes, and empty for
    /// the root itself. `read` is called with the name of each per-directory file and gives its
    /// content, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`FilterError`] if a file cannot be read, or holds a rule that cannot be used. A line of a
    /// `.gitignore` that makes no sense is passed over, as git does.
    pub fn enter(&self, path: &[u8], read: &mut Read<'_>) -> Result<Self, FilterError> {
        let state = &*self.0;
        if state.slots.is_empty() && !state.job.options.gitignore {
            return Ok(self.clone());
        }
        let mut entry = Entry { path, read, state: state.clone(), is_changed: false };
        entry.merge_all()?;
        if state.job.options.gitignore {
            entry.ignore()?;
        }
        Ok(if entry.is_changed { Self(Arc::new(entry.state)) } else { self.clone() })
    }

    /// The same scope for a directory that is being removed with all that is in it, where
    /// perishable rules (`p`) protect nothing. Scopes entered from it are alike.
    #[must_use]
    pub fn in_removed_directory(&self) -> Self {
        Self(Arc::new(State { is_removed: true, ..(*self.0).clone() }))
    }

    /// Whether an entry takes part: for [`Side::Sender`], `false` hides it from the transfer, for
    /// [`Side::Receiver`], `false` protects it from deletion. `path` is relative to the transfer's
    /// root, and the entry is in the directory of this scope. The root itself always takes part.
    pub fn admits(&self, side: Side, path: &[u8], is_directory: bool) -> bool {
        let state = &*self.0;
        if path.is_empty() || state.job.items.is_empty() && state.ignores.is_empty() {
            return true;
        }
        let subject = Subject::new(&state.root, path, is_directory);
        let question = Question { state, side, subject: &subject };
        let action = question.ask(b"", &state.job.items);
        action.map_or_else(|| !state.ignores(side, path, is_directory), |it| it == Prefix::Include)
    }
}

impl State {
    /// Whether a `.gitignore` leaves an entry out. The innermost that says something decides.
    fn ignores(&self, side: Side, path: &[u8], is_directory: bool) -> bool {
        if side == Side::Receiver && self.job.options.delete_excluded {
            return false;
        }
        let decision = self.ignores.iter().find_map(|file| file.ignores(path, is_directory));
        decision.unwrap_or(false)
    }

    fn rules(&self) -> usize {
        let files: usize = self.slots.iter().map(|slot| slot.rules).sum();
        self.job.items.len() + files + self.ignore_lines
    }
}

impl Slot {
    fn new(merge: &Arc<Merge>) -> Self {
        Self { merge: Arc::clone(merge), files: Chain::default(), rules: 0 }
    }

    fn clear(&mut self) {
        self.files = Chain::default();
        self.rules = 0;
    }
}

/// Whether an entry is included, as the rules say.
struct Question<'a> {
    state: &'a State,
    side: Side,
    subject: &'a Subject,
}

impl Question<'_> {
    /// Asks a list of rules, anchored at `base`. Recursive, but never deeper than there are slots.
    fn ask(&self, base: &[u8], items: &[Item]) -> Option<Prefix> {
        items.iter().find_map(|item| match item {
            Item::Rule(rule) => self.applies(rule, base).then_some(rule.action),
            Item::Merge(slot) => {
                let mut files = self.state.slots.get(*slot)?.files.iter();
                files.find_map(|file| self.ask(&file.base, &file.items))
            }
        })
    }

    fn applies(&self, rule: &Rule, base: &[u8]) -> bool {
        let modifiers = rule.modifiers;
        let is_for_side = match self.side {
            Side::Sender => modifiers.sender || !modifiers.receiver,
            Side::Receiver => modifiers.receiver || !modifiers.sender,
        };
        is_for_side
            && !(self.state.is_removed && modifiers.is_perishable)
            && rule.pattern.matches(self.subject, base, modifiers.is_absolute) != rule.is_negated
    }
}

/// A directory while its files are read.
struct Entry<'a> {
    path: &'a [u8],
    read: &'a mut Read<'a>,
    state: State,
    /// Whether the directory differs from its parent.
    is_changed: bool,
}

impl Entry<'_> {
    /// Reads the files of every slot, and of those that the files add.
    fn merge_all(&mut self) -> Result<(), FilterError> {
        let mut index = 0;
        while let Some(slot) = self.state.slots.get_mut(index) {
            if !slot.merge.is_inherited && !slot.files.is_empty() {
                slot.clear();
                self.is_changed = true;
            }
            let merge = Arc::clone(&slot.merge);
            if let Some(content) = self.content(&merge.name)? {
                self.merge(index, &merge, &content)?;
            }
            index += 1;
        }
        Ok(())
    }

    fn merge(&mut self, index: usize, merge: &Merge, content: &[u8]) -> Result<(), FilterError> {
        let file = self.file(&merge.name);
        let room = MAX_RULES.saturating_sub(self.state.rules());
        let mut merges: Vec<_> =
            self.state.slots.iter().map(|slot| Arc::clone(&slot.merge)).collect();
        let old = merges.len();
        let mut list = List::new(&mut merges, self.state.job.options).within(room);
        for (line, text) in Entries::new(content, false, merge.format) {
            let statement = Statement::parse(text, merge.format).map_err(FilterError::rule(text));
            let added = statement.and_then(|statement| list.push(statement, text));
            added.map_err(FilterError::within(&file, line))?;
        }
        let Finished { items, clears } = list.finish();
        self.state.slots.extend(merges.iter().skip(old).map(Slot::new));
        self.is_changed |= clears || !items.is_empty();
        if let Some(slot) = self.state.slots.get_mut(index) {
            if clears {
                slot.clear();
            }
            if !items.is_empty() {
                slot.rules += items.len();
                let base = self.path.to_vec();
                slot.files = std::mem::take(&mut slot.files).with(File { base, items });
            }
        }
        Ok(())
    }

    fn ignore(&mut self) -> Result<(), FilterError> {
        let Some(content) = self.content(gitignore::NAME)? else { return Ok(()) };
        let room = MAX_RULES.saturating_sub(self.state.rules());
        let ignores = Ignores::new(self.path, &content, room)
            .map_err(|excess| FilterError::within(&self.file(gitignore::NAME), 1)(excess.into()))?;
        let Some(ignores) = ignores else { return Ok(()) };
        self.state.ignore_lines += ignores.lines();
        self.state.ignores = std::mem::take(&mut self.state.ignores).with(ignores);
        self.is_changed = true;
        Ok(())
    }

    fn content(&mut self, name: &[u8]) -> Result<Option<Vec<u8>>, FilterError> {
        let content = (self.read)(name)
            .map_err(|cause| FilterError::Read { file: self.file(name), cause })?;
        match content {
            Some(content) if content.len() > MAX_TEXT_LEN => {
                Err(FilterError::within(&self.file(name), 1)(Excess::Text.into()))
            }
            content => Ok(content),
        }
    }

    /// The path of a file in this directory, for messages.
    fn file(&self, name: &[u8]) -> Vec<u8> {
        let slash: &[u8] = if self.path.is_empty() { b"" } else { b"/" };
        [self.path, slash, name].concat()
    }
}

/// A list of rules while it is compiled.
pub struct List<'a> {
    items: Vec<Item>,
    /// Where the slots of the list are, after those that were there before.
    merges: &'a mut Vec<Arc<Merge>>,
    old_merges: usize,
    options: FilterOptions,
    room: usize,
    clears: bool,
}

/// A list of rules, compiled.
pub struct Finished {
    pub items: Vec<Item>,
    /// Whether the list begins anew, and does not add to what is inherited.
    pub clears: bool,
}

impl<'a> List<'a> {
    pub fn new(merges: &'a mut Vec<Arc<Merge>>, options: FilterOptions) -> Self {
        let old_merges = merges.len();
        Self { items: Vec::new(), merges, old_merges, options, room: MAX_RULES, clears: false }
    }

    fn within(self, room: usize) -> Self {
        Self { room, ..self }
    }

    pub fn push(&mut self, statement: Statement, text: &[u8]) -> Result<(), FilterError> {
        match statement {
            Statement::Clear => {
                self.items.clear();
                self.merges.truncate(self.old_merges);
                self.clears = true;
                Ok(())
            }
            Statement::Match(rule) => self.add(Item::Rule(self.compile(&rule))),
            Statement::Merge(merge) if !merge.per_directory => {
                Err(FilterError::rule(text)(Problem::Merge))
            }
            Statement::Merge(merge) => self.add_merge(merge, text),
        }
    }

    fn add(&mut self, item: Item) -> Result<(), FilterError> {
        if self.items.len() >= self.room {
            return Err(Excess::Rules.into());
        }
        self.items.push(item);
        Ok(())
    }

    fn compile(&self, rule: &Match) -> Rule {
        let mut modifiers = rule.modifiers;
        modifiers.sender |= self.options.delete_excluded && !modifiers.receiver;
        let pattern = Pattern::new(&rule.pattern);
        Rule { action: rule.action, is_negated: rule.is_negated, modifiers, pattern }
    }

    /// A name that is looked for already keeps its place, as in rsync.
    fn add_merge(&mut self, merge: Merge, text: &[u8]) -> Result<(), FilterError> {
        if merge.name.contains(&b'/') || matches!(&*merge.name, b"." | b"..") {
            return Err(FilterError::rule(text)(Problem::MergePath));
        }
        if let Some(rule) = merge.exclusion() {
            self.add(Item::Rule(self.compile(&rule)))?;
        }
        if self.merges.iter().any(|known| known.name == merge.name) {
            return Ok(());
        }
        if self.merges.len() >= MAX_MERGES {
            return Err(Excess::Merges.into());
        }
        self.merges.push(Arc::new(merge));
        self.add(Item::Merge(self.merges.len() - 1))
    }

    pub fn finish(self) -> Finished {
        Finished { items: self.items, clears: self.clears }
    }
}
