//! Rules, scopes and decisions together.

use std::io;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const PLAIN: FilterOptions = FilterOptions { gitignore: false, delete_excluded: false };
const EXCLUDED: FilterOptions = FilterOptions { gitignore: false, delete_excluded: true };
const GIT: FilterOptions = FilterOptions { gitignore: true, delete_excluded: false };

fn compiled(rules: &[&str], options: FilterOptions) -> Result<Rules, FilterError> {
    let texts: Vec<Vec<u8>> = rules.iter().map(|rule| rule.as_bytes().to_vec()).collect();
    Rules::new(&texts, options)
}

/// A tree's per-directory files.
type Files<'a> = &'a [(&'a str, &'a str)];

fn enter(scope: &Scope, directory: &str, files: Files<'_>) -> Result<Scope, FilterError> {
    scope.enter(directory.as_bytes(), &mut |name| {
        let name = String::from_utf8(name.to_vec()).unwrap();
        let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
        let found = files.iter().find(|(file, _)| *file == path);
        Ok(found.map(|(_, content)| content.as_bytes().to_vec()))
    })
}

/// Whether a path is reached: it and all of its parents are admitted. Directories end with a slash.
fn reaches(start: &Scope, side: Side, path: &str, files: Files<'_>) -> Result<bool, FilterError> {
    let (path, is_directory) =
        path.strip_suffix('/').map_or((path, false), |directory| (directory, true));
    let mut scope = enter(start, "", files)?;
    for (slash, _) in path.match_indices('/') {
        if !scope.admits(side, &path.as_bytes()[..slash], true) {
            return Ok(false);
        }
        scope = enter(&scope, &path[..slash], files)?;
    }
    Ok(scope.admits(side, path.as_bytes(), is_directory))
}

/// Checks which of the paths are admitted as what they are, without regard to their parents: those
/// before the bar are, those after it are not.
#[track_caller]
fn check(rules: &[&str], paths: &str) {
    check_at(&compiled(rules, PLAIN).unwrap().root(), &format!("{rules:?}"), paths);
}

#[track_caller]
fn check_at(scope: &Scope, name: &str, paths: &str) {
    let (yes, no) = paths.split_once('|').unwrap();
    for (paths, expected) in [(yes, true), (no, false)] {
        for path in paths.split_whitespace() {
            let bare = path.trim_end_matches('/');
            let admitted = scope.admits(Side::Sender, bare.as_bytes(), bare.len() < path.len());
            assert_eq!(admitted, expected, "{name}: {path}");
        }
    }
}

/// The same where the parents count, and with per-directory files.
#[track_caller]
fn check_tree(rules: &[&str], options: FilterOptions, files: Files<'_>, paths: &str) {
    let scope = compiled(rules, options).unwrap().root();
    let (yes, no) = paths.split_once('|').unwrap();
    for (paths, expected) in [(yes, true), (no, false)] {
        for path in paths.split_whitespace() {
            let reached = reaches(&scope, Side::Sender, path, files).unwrap();
            assert_eq!(reached, expected, "{rules:?}: {path}");
        }
    }
}

fn problem(rules: &[&str]) -> String {
    compiled(rules, PLAIN).unwrap_err().to_string()
}

#[test]
fn the_examples_of_the_manual_hold() {
    check(&["- *.o"], "a.c o | a.o x/y/a.o d.o/");
    check(&["- /foo"], "x/foo foo2 | foo foo/");
    check(&["- foo/"], "foo x/foo | foo/ x/foo/");
    check(&["- foo/*/bar"], "foo/bar foo/a/b/bar foo/a/b | foo/a/bar x/foo/a/bar");
    check(&["- /foo/**/bar"], "foo/bar x/foo/a/bar | foo/a/bar foo/a/b/bar");
    check(&["+ */", "+ *.c", "- *"], "a/ a/b/ a/b.c | a b.h a/b.h");
    check(&["+ foo/", "+ foo/bar.c", "- *"], "foo/ foo/bar.c | foo bar.c foo/x a/bar.c");
    check(&["- foo"], "food x/food | foo x/foo");
    check(&["- foo/bar"], "foo bar | foo/bar x/foo/bar");
    check(&["- /foo/**"], "foo foo/ x/foo/a | foo/a foo/a/b");
    check(&["- /foo/bar/**"], "foo/bar/ | foo/bar/a");
    check(&["- dir_name/***"], "dir_name x/dir_name | dir_name/ dir_name/a x/dir_name/a/b");
    check(&["- foo\\bar"], "foobar | foo\\bar");
    check(&["- foo\\bar*"], "foo\\bar | foobar foobarx");
    check(&["- foo\\\\bar*"], "foobar | foo\\bar foo\\barx");
    check(&["-! */"], "a/ x/a/ | a x/a");
    let nested = ["+ x/", "+ x/y/", "+ x/y/file.txt", "- *"];
    check_tree(
        &nested,
        PLAIN,
        &[],
        "x/ x/y/ x/y/file.txt | x/file.txt x/y/zzz.txt x/z/ x/z/file.txt",
    );
    check_tree(&["+ file.txt", "- *"], PLAIN, &[], "file.txt | y/ y/file.txt z/file.txt");
    check(&["- zzz.txt"], "x/ x/file.txt | x/y/zzz.txt");
    check(&["- me/foo/bar"], "me/foo you/bar/baz | me/foo/bar");
}

#[test]
fn a_pattern_reaches_as_far_as_its_slashes_say() {
    check(&["- a*b"], "a/b a/xb | ab axb x/axb");
    check(&["- a/*"], "a | a/b x/a/b");
    check(&["- /a/*"], "x/a/b a/b/c | a/b");
    check(&["- **/a"], "ab | a x/a x/y/a");
    check(&["- **a"], "ab | a xa x/ya");
    check(&["- a**b"], "xab x/ya/b | ab a/b x/a/y/b axb");
    check(&["- a/**/b"], "a/b | a/x/b x/a/y/z/b");
    check(&["- /**/a"], "a | x/a x/y/a");
    check(&["- **"], "| a a/b a/");
    check(&["- a/**"], "a/ xa/b | a/b x/a/b/c");
    check(&["- a***"], "xa | a ab a/ a/b x/a/");
    check(&["- **/"], "a x/a | a/ x/a/");
    check(&["- /"], "a a/ |");
    check(&["- a//"], "a/ a |");
    check(&["- */b/c"], "b/c x/y/z/c | a/b/c x/a/b/c");
    check(&["- [a]/b"], "ab | a/b x/a/b");
    check(&["- a b"], "a b |");
    check(&["- \u{e9}?"], "\u{e9} | \u{e9}x");
}

#[test]
fn rules_are_written_in_many_ways() {
    for rule in [
        "- a",
        "-_a",
        "-, a",
        "-,_a",
        "exclude a",
        "exclude_a",
        "exclude, a",
        "-s a",
        "-,s a",
        "-sr a",
        "exclude,s a",
        "hide a",
        "H a",
        "H,p a",
        "Hp a",
        "-p a",
        "-/ a",
    ] {
        check(&[rule], "b | a x/a");
    }
    for rule in ["+ a", "include a", "show a", "S a", "+s_a", "include,p a"] {
        check(&[rule, "- *"], "a x/a | b");
    }
    for rule in ["P a", "protect a", "R a", "risk_a", "-r a", "exclude,r a"] {
        check(&[rule], "a b |");
    }
    check(&["-  a"], "a |");
    check(&["- _a"], "a | _a");
    check(&["- a", "!", "- b"], "a | b");
    check(&["- a", "clear"], "a |");
    check(&["-! *.c"], "a.c | a.h c/");
    check(&["-! a/"], "a/ | a b b/");
}

#[test]
fn sides_are_decided_apart() {
    let cases = [
        ("- a", false, false),
        ("H a", false, true),
        ("-s a", false, true),
        ("P a", true, false),
        ("-r a", true, false),
        ("-sr a", false, false),
    ];
    for (rule, sender, receiver) in cases {
        let scope = compiled(&[rule], PLAIN).unwrap().root();
        assert_eq!(scope.admits(Side::Sender, b"a", false), sender, "{rule}");
        assert_eq!(scope.admits(Side::Receiver, b"a", false), receiver, "{rule}");
    }
    let scope = compiled(&["R a", "S b", "- *"], PLAIN).unwrap().root();
    let decisions =
        |path: &[u8]| [Side::Sender, Side::Receiver].map(|side| scope.admits(side, path, false));
    assert_eq!(decisions(b"a"), [false, true]);
    assert_eq!(decisions(b"b"), [true, false]);
    assert_eq!(decisions(b"c"), [false, false]);
}

/// What names no side is for the sender only; the rest stays.
#[test]
fn deleting_what_is_excluded_leaves_protection_to_explicit_rules() {
    let scope = compiled(&["- a", "P b", "-r c", ": .r"], EXCLUDED).unwrap().root();
    let scope = enter(&scope, "", &[(".r", "- d\nP e\n")]).unwrap();
    let protected =
        [b"a", b"b", b"c", b"d", b"e"].map(|path| !scope.admits(Side::Receiver, path, false));
    assert_eq!(protected, [false, true, true, false, true]);
    assert!(!scope.admits(Side::Sender, b"a", false));
    assert!(!scope.admits(Side::Sender, b"d", false));
}

#[test]
fn perishable_rules_do_not_count_in_removed_directories() {
    let scope = compiled(&["-p a", "- b", ": .r"], PLAIN).unwrap().root();
    assert!(!scope.admits(Side::Receiver, b"x/a", false));
    let removed = scope.in_removed_directory();
    let inner = enter(&removed, "x", &[("x/.r", "-p c")]).unwrap();
    for scope in [removed, inner] {
        assert!(scope.admits(Side::Receiver, b"x/a", false));
        assert!(!scope.admits(Side::Receiver, b"x/b", false));
        assert!(scope.admits(Side::Receiver, b"x/c", false));
    }
}

#[test]
fn absolute_rules_see_the_path_of_the_root() {
    let at = |root: &str, rule: &str, paths: &str| {
        let scope = compiled(&[rule], PLAIN).unwrap().root_at(root.as_bytes());
        check_at(&scope, rule, paths);
    };
    at("/etc", "-/ /etc/passwd", "etc/passwd x/passwd | passwd");
    at("/", "-/ /etc/passwd", "passwd | etc/passwd");
    at("", "-/ /etc/passwd", "passwd | etc/passwd");
    at("/home/subdir/", "-/ subdir/foo", "x/foo | foo subdir/foo");
    at("/home", "-/ **/foo", "food | foo a/foo");
    at("/home", "-/ foo", "food | foo a/foo");
    at("/home", "-/ /home/***", "| a a/ a/b");
    at("/home", "-/ home/*/b", "b a/a/b | a/b");
    let scope = compiled(&[":-/ .r"], PLAIN).unwrap().root_at(b"/home");
    let scope = enter(&scope, "a", &[("a/.r", "/home/a/b\n/a/c\n/d\n")]).unwrap();
    check_at(&scope, "a/.r", "a/c a/d | a/b");
}

#[test]
fn directories_inherit_and_override() {
    let files: Files<'_> = &[
        (".r", "- *.o\n+ keep\n"),
        ("a/.r", "# comment\n+ x.o\n- keep\n"),
        ("a/b/.r", "!\n"),
        ("c/.r", "/only\n"),
    ];
    check_tree(
        &["dir-merge .r", "- keep", "- last"],
        PLAIN,
        &files[..3],
        "keep a/x.o a/b/x.o a/b/y.o .r | x.o a/keep a/y.o a/b/keep a/b/last d/y.o",
    );
    let anchored: Files<'_> = &[("c/.r", "- /only\n- d/e\n- /*/f\n- c/g\n")];
    check_tree(
        &[": .r"],
        PLAIN,
        anchored,
        "only c/d/only c/f d/e d/f | c/only c/d/e c/x/d/e c/d/f c/g",
    );
    check_tree(&["- *.c", ": .r"], PLAIN, &[(".r", "+ *.c")], "a | a.c");
    check_tree(&[": .r", "- *.c"], PLAIN, &[(".r", "+ *.c")], "a.c d/a.c |");
}

#[test]
fn merge_rules_have_modifiers() {
    let files: Files<'_> = &[(".r", "a\n- b\n#c\n")];
    check_tree(&[":- .r"], PLAIN, files, "b .r | a d/a");
    check_tree(&["dir-merge,n- .r"], PLAIN, files, "d/a d/.r | a");
    check_tree(&[":e- .r"], PLAIN, files, "x | a .r d/.r");
    check_tree(&[":+ .r", "- *"], PLAIN, files, "a | b d/a .r");
    check_tree(&[":-w .r"], PLAIN, &[(".r", "a #b  c\n")], "d | a #b c");
    check_tree(&[":w .r"], PLAIN, &[(".r", "+ a -_b - *")], "a | b c");
    check_tree(&[":C"], PLAIN, &[(".cvsignore", "a !\nb *.o")], "a d/b | b x.o");
    check_tree(&["+ foo.o", ":C", "- *.old"], PLAIN, &[(".cvsignore", "*.o")], "foo.o | a.o a.old");
    check_tree(&[":s- .r"], PLAIN, files, "x | a");
    check_tree(&[":r- .r"], PLAIN, files, "x a |");
    check_tree(&[": .r"], PLAIN, &[(".r", "- a\r\n\r\n- b\r")], "c | a b");
}

/// A directory's name stands for itself, whatever is in it.
#[test]
fn directories_may_have_wildcards_in_their_names() {
    let files: Files<'_> = &[("[a]*/.r", "- /b\n- /c*\n")];
    check_tree(&[": .r"], PLAIN, files, "[a]*/x [a]*/d/b a/b | [a]*/b [a]*/cc");
}

#[test]
fn files_may_name_more_per_directory_files() {
    let files: Files<'_> = &[
        (".r", ": .q\n- z\n"),
        (".q", "- a\n+ z\n"),
        ("d/.q", "+ a\n"),
        ("d/e/.q", "!\n"),
        ("f/.r", "!\n"),
    ];
    check_tree(&[": .r"], PLAIN, files, "z d/a d/e/a f/a f/z d/z | a g/a d/e/z");
    // As in rsync, what is forgotten in a subdirectory stays named.
    let files: Files<'_> = &[(".r", ": .q"), (".q", "- a"), ("d/.r", ": .q"), ("d/.q", "- b")];
    check_tree(&[":n .r"], PLAIN, files, "d/a d/b b | a");
    check_tree(&[": .r"], PLAIN, files, "b | a d/a d/b");
    // A second rule for the same name is none.
    check_tree(&[":n- .r", "+ b", ":- .r"], PLAIN, &[(".r", "a\nb")], "d/a d/b | a b");
}

#[test]
fn what_is_wrong_is_named() {
    let cases = [
        ("foo", "no such kind"),
        ("", "no such kind"),
        ("excluded a", "no such kind"),
        (" - a", "no such kind"),
        ("-foo", "modifier `f`"),
        ("-n a", "modifier `n`"),
        ("Hs a", "modifier `s`"),
        (":! a", "modifier `!`"),
        (":+- a", "modifier `-`"),
        (":C- a", "modifier `-`"),
        ("exclude\ta", "modifier `\\t`"),
        ("-", "missing"),
        ("- ", "missing"),
        (":n ", "missing"),
        ("! a", "clearing"),
        ("clear a", "clearing"),
        ("-C", "CVS"),
        ("-x user.*", "extended attributes"),
        (": /.rsync-filter", "without slashes"),
        (": a/b", "without slashes"),
        (": ..", "without slashes"),
        (". file", "merged only"),
        ("merge file", "merged only"),
        ("- a\0b", "NUL"),
    ];
    for (rule, expected) in cases {
        let error = problem(&[rule]);
        assert!(error.contains(expected), "{rule}: {error}");
    }
    assert!(problem(&["- a", "?b\x1b"]).starts_with("filter rule `?b\\u{1b}`: "));

    let scope = compiled(&[":s .r"], PLAIN).unwrap().root();
    for (content, expected) in [
        ("- a\n\nfoo\n", "`foo` (d/.r, line 3)"),
        (". x\n", "`. x` (d/.r, line 1): a file can be merged only"),
        ("H a\n", "which side"),
        ("-r a\n", "which side"),
    ] {
        let error = enter(&scope, "d", &[("d/.r", content)]).unwrap_err().to_string();
        assert!(error.contains(expected), "{content}: {error}");
    }
    let refused = &mut |_: &[u8]| Err(io::ErrorKind::PermissionDenied.into());
    let error = scope.enter(b"d", refused).unwrap_err().to_string();
    assert!(error.contains("d/.r"), "{error}");
}

#[test]
fn there_are_limits() {
    let rule = |len: usize| format!("- {}", "a".repeat(len - 2));
    assert!(compiled(&[&rule(MAX_RULE_LEN)], PLAIN).is_ok());
    let error = problem(&[&rule(MAX_RULE_LEN + 1)]);
    assert!(error.contains("4096") && error.len() < 300, "{error}");

    let many = vec![b"- a".to_vec(); MAX_RULES];
    assert!(Rules::new(&many, PLAIN).is_ok());
    assert!(Rules::new(&[many, vec![b"- a".to_vec()]].concat(), PLAIN).is_err());
    let long = vec![rule(MAX_RULE_LEN).into_bytes(); MAX_TEXT_LEN / MAX_RULE_LEN + 1];
    assert!(Rules::new(&long, PLAIN).unwrap_err().to_string().contains("bytes"));

    let merges: Vec<String> = (0..=MAX_MERGES).map(|number| format!(": .r{number}")).collect();
    let merges: Vec<&str> = merges.iter().map(String::as_str).collect();
    assert!(compiled(&merges[1..], PLAIN).is_ok());
    assert!(problem(&merges).contains("kinds"));
}

/// What is inherited counts, or a deep tree could pile up rules without end.
#[test]
fn rules_on_the_way_down_are_limited_together() {
    let content = "- a\n".repeat(MAX_RULES / 2);
    let mut scope = compiled(&[": .r"], GIT).unwrap().root();
    let mut read = |name: &[u8]| Ok((name == b".r").then(|| content.clone().into_bytes()));
    scope = scope.enter(b"", &mut read).unwrap();
    let error = scope.enter(b"a", &mut read).unwrap_err().to_string();
    assert!(error.contains("a/.r, line 32768"), "{error}");
    let ignored = &mut |name: &[u8]| Ok((name == b".gitignore").then(|| vec![b'\n'; 9]));
    assert!(scope.enter(b"a", ignored).is_ok());
    let lines = "a\n".repeat(MAX_RULES / 2);
    let ignored =
        &mut |name: &[u8]| Ok((name == b".gitignore").then(|| lines.clone().into_bytes()));
    assert!(scope.enter(b"a", ignored).unwrap_err().to_string().contains("a/.gitignore"));
    let large = &mut |_: &[u8]| Ok(Some(vec![b'\n'; MAX_TEXT_LEN + 1]));
    assert!(scope.enter(b"a", large).is_err());
}

#[test]
fn without_rules_nothing_is_read_and_all_takes_part() {
    let rules = compiled(&[], PLAIN).unwrap();
    assert!(rules.is_empty());
    let scope = rules.root().enter(b"", &mut |_| panic!("nothing to read")).unwrap();
    assert!(scope.admits(Side::Sender, b"a", false));
    assert!(!compiled(&[], GIT).unwrap().is_empty());
    assert!(!compiled(&["- a"], PLAIN).unwrap().is_empty());
    assert!(compiled(&["- a", "!"], PLAIN).unwrap().is_empty());
    // The root is not excluded by anything.
    assert!(compiled(&["- *", "- **", "-! a"], PLAIN).unwrap().root().admits(
        Side::Sender,
        b"",
        true
    ));
}

#[test]
fn gitignore_files_mean_what_they_mean_to_git() {
    let cases: &[(&str, &str)] = &[
        ("*.o", "a.c | a.o d/a.o"),
        ("a", "ab | a d/a a/x"),
        ("a/", "a d/a | a/ d/a/ a/x"),
        ("/a", "d/a | a"),
        ("a/b", "d/a/b b | a/b"),
        ("**/a", "b | a d/a d/e/a"),
        ("a/**", "a/ | a/b a/b/c"),
        ("a/**/b", "d/a/b | a/b a/x/b a/x/y/b"),
        ("a*b", "a/b | ab axb"),
        ("*\n!a", "a | b d/a"),
        ("*\n!*/\n!a", "a d/a | b d/b"),
        ("a/\n!a/b", "b | a/b"),
        ("a/*\n!a/b", "a/b a/ | a/c"),
        ("#a\n\\#b\n\\!c", "#a a | #b !c"),
        ("a  \nb\\ \nc\r\n!", "b | a c"),
        ("{a,b}", "a b | {a,b}"),
        ("[[:digit:]]", "a | 1"),
        ("[!x]y\n[\\]]", "xy d/ | ay d/ay ]"),
        ("a[!b]c", "a/c abc | axc"),
        ("[a\n[z-a]\nb", "a | b"),
        ("*\n!", "| a"),
        (".git/x", ".git/ | .git/x"),
        ("**", "| a a/b"),
        ("/***/b", "d/a | b d/b d/e/b"),
        ("/**/", "a | a/ d/a/ d/a"),
        ("\u{feff}a", "b | a"),
    ];
    for (content, paths) in cases {
        check_tree(&[], GIT, &[(".gitignore", content)], paths);
    }
    let inner: Files<'_> = &[(".gitignore", "*.o\n/x"), ("d/.gitignore", "!a.o\n/x\nz")];
    check_tree(&[], GIT, inner, "d/a.o z e/x | a.o d/b.o x d/x d/z d/e/z");
}

#[test]
fn rules_are_asked_before_gitignore_files() {
    let files: Files<'_> = &[(".gitignore", "a\n!b\nc\n")];
    check_tree(&["+ a", "- b"], GIT, files, "a d | b c");
    let scope = compiled(&[], GIT).unwrap().root();
    assert!(!reaches(&scope, Side::Receiver, "c", files).unwrap());
    let both = FilterOptions { delete_excluded: true, ..GIT };
    let scope = compiled(&[], both).unwrap().root();
    assert!(reaches(&scope, Side::Receiver, "c", files).unwrap());
    assert!(!reaches(&scope, Side::Sender, "c", files).unwrap());
    // The option decides whether the files are looked at.
    check_tree(&["- x"], PLAIN, files, "a c | x");
}

/// `\xff` in a pattern and in a name.
#[test]
fn names_need_not_be_utf_8() {
    let rules = Rules::new(&[b"- a\xff".to_vec(), b"- /[\xf0-\xff]".to_vec()], PLAIN).unwrap();
    let scope = rules.root();
    assert!(!scope.admits(Side::Sender, b"d/a\xff", false));
    assert!(!scope.admits(Side::Sender, b"\xfe", false));
    assert!(scope.admits(Side::Sender, b"a\xfe", false));

    let scope = compiled(&[], GIT).unwrap().root();
    let scope = scope.enter(b"", &mut |_| Ok(Some(b"a\xffb\n".to_vec()))).unwrap();
    assert!(!scope.admits(Side::Sender, b"a\xffb", false));
    assert!(scope.admits(Side::Sender, b"a\xff", false));
}

fn rule() -> impl Strategy<Value = Vec<u8>> {
    let pieces: &[&str] = &[
        "- ",
        "+",
        "-",
        ":",
        "!",
        ".",
        "exclude",
        ",",
        "s",
        "r",
        "n",
        "w",
        "C",
        "_",
        " ",
        "a",
        "/",
        "*",
        "**",
        "[",
        "]",
        "\\",
        "{",
        "\n",
        "\0",
        "#",
        "H",
        "dir-merge",
    ];
    let known =
        vec(proptest::sample::select(pieces), 0..8).prop_map(|pieces| pieces.concat().into_bytes());
    prop_oneof![known, vec(any::<u8>(), 0..30)]
}

proptest! {
    /// Rules and files may come from anyone.
    #[test]
    fn nothing_makes_it_panic(
        rules in vec(rule(), 0..4),
        content in vec(rule(), 0..4),
        path in vec(any::<u8>(), 0..20),
    ) {
        let rules: Vec<_> = rules.into_iter().filter(|it| Rules::new(std::slice::from_ref(it), GIT).is_ok()).collect();
        let content = content.join(&b'\n');
        for text in &rules {
            let again = expand(text, false, &mut |_| Ok(content.clone()));
            prop_assert!(again.is_ok_and(|texts| Rules::new(&texts, GIT).is_ok()));
        }
        let _ = expand(b"merge,s x", true, &mut |_| Ok(content.clone()));
        let scope = Rules::new(&rules, GIT).unwrap().root_at(&path);
        if let Ok(scope) = scope.enter(b"", &mut |_| Ok(Some(content.clone()))) {
            scope.admits(Side::Sender, &path, false);
            scope.admits(Side::Receiver, &path, true);
        }
    }
}
