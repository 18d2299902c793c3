//! Who we are at a host, by the user's netrc file (ftp(1), curl's manual).

use crate::storage::remote::{Class, Fault};

/// What a netrc file says of one host.
#[derive(Clone, Eq, PartialEq)]
pub struct Credentials {
    pub login: String,
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

/// Looks a host up. `machine` entries count in their order, `default` after them.
///
/// # Errors
///
/// If the text is no netrc file. The message has nothing of its content.
pub fn look_up(text: &str, host: &str, login: Option<&str>) -> Result<Option<Credentials>, Fault> {
    let wrong = |what: &str| Fault::new(Class::Credentials, format!("the netrc file {what}"));
    let mut words = Words(text);
    let mut found = Entry::default();
    let mut is_for_host = false;
    loop {
        let word = words.next();
        match word.as_deref() {
            None | Some("machine" | "default") => {
                if let Some(credentials) = found.credentials(login).filter(|_| is_for_host) {
                    return Ok(Some(credentials));
                }
                found = Entry::default();
                is_for_host = match word.as_deref() {
                    None => return Ok(None),
                    Some("default") => true,
                    Some(_) => {
                        let name = words.next().ok_or_else(|| wrong("ends after `machine`"))?;
                        name.eq_ignore_ascii_case(host)
                    }
                };
            }
            Some("login") => found.login = words.next(),
            Some("password") => found.password = words.next(),
            Some("account") => drop(words.next()),
            Some("macdef") => words.skip_macro(),
            Some(_) => return Err(wrong("has a word that means nothing")),
        }
    }
}

#[derive(Default)]
struct Entry {
    login: Option<String>,
    password: Option<String>,
}

impl Entry {
    fn credentials(&self, login: Option<&str>) -> Option<Credentials> {
        let own = self.login.clone().or_else(|| login.map(str::to_owned))?;
        let is_other = login.is_some_and(|login| login != own);
        let password = self.password.clone().filter(|_| !is_other)?;
        Some(Credentials { login: own, password })
    }
}

/// Words between blanks, with `#` comments at the start of a word, and quotes around words.
struct Words<'a>(&'a str);

impl Words<'_> {
    fn next(&mut self) -> Option<String> {
        loop {
            self.0 = self.0.trim_start();
            let first = self.0.chars().next()?;
            if first != '#' {
                break;
            }
            self.0 = self.0.split_once('\n').map_or("", |(_, rest)| rest);
        }
        if let Some(quoted) = self.0.strip_prefix('"') {
            return Some(self.quoted(quoted.len()));
        }
        let end = self.0.find(char::is_whitespace).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(word.to_owned())
    }

    /// A word in quotes, in which a backslash takes the meaning from the next character.
    fn quoted(&mut self, len: usize) -> String {
        let text = &self.0[self.0.len() - len..];
        let mut word = String::new();
        let mut characters = text.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.0 = &text[at + 1..];
                    return word;
                }
                '\\' => word.extend(characters.next().map(|(_, character)| character)),
                other => word.push(other),
            }
        }
        self.0 = "";
        word
    }

    /// A macro ends with an empty line.
    fn skip_macro(&mut self) {
        let end = self.0.find("\n\n").map_or(self.0.len(), |at| at + 2);
        self.0 = &self.0[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, host: &str) -> Option<(String, String)> {
        let found = look_up(text, host, None).unwrap();
        found.map(|it| (it.login, it.password))
    }

    #[test]
    fn hosts_are_looked_up_in_order() {
        let text = "# mine\nmachine a.example login me password p1\n\
                    machine b.example\n\tlogin \"you there\"\n\tpassword \"p\\\"2\" account x\n\
                    macdef init\ncd /\nmachine fake\n\nmachine A.EXAMPLE login second password p3\n\
                    default login anonymous password guest\n";
        let pair = |login: &str, password: &str| Some((login.to_owned(), password.to_owned()));
        assert_eq!(found(text, "A.example"), pair("me", "p1"));
        assert_eq!(found(text, "b.example"), pair("you there", "p\"2"));
        assert_eq!(found(text, "fake"), pair("anonymous", "guest"));
        assert_eq!(look_up(text, "a.example", Some("second")).unwrap().unwrap().password, "p3");
        assert_eq!(found("machine a login b", "a"), None, "without a password");
        assert_eq!(found("", "a"), None);
    }

    #[test]
    fn what_is_no_such_file_is_told_without_its_content() {
        for text in ["secret", "machine", "machine a secret b"] {
            let error = look_up(text, "a", None).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let credentials = found("machine a login l password p", "a").unwrap();
        let credentials = Credentials { login: credentials.0, password: credentials.1 };
        assert_eq!(format!("{credentials:?}"), "Credentials");
    }
}
