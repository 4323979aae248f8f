//! Patterns of names: `*` stands for any number of characters that a name may have.

/// Whether all of `name` is as `pattern` says; `fits` says which characters `*` stands for. Takes at
/// most the product of both lengths.
pub fn matches(pattern: &str, name: &str, fits: fn(char) -> bool) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last `*` is, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                if !fits(name[taken]) {
                    return false;
                }
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// What `*` stands for in names of hosts and nodes.
pub fn of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("n1", "n1", true),
            ("n1", "n2", false),
            ("n*", "n1", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*c", "a/c", false),
            ("**", "a", true),
        ] {
            assert_eq!(matches(pattern, name, of_name), fits, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn it_says_what_a_regular_expression_says(pattern in "[ab*.]{0,8}", name in "[ab./]{0,8}") {
            let text = pattern.replace('.', "[.]").replace('*', "[-a-zA-Z0-9_.]*");
            let expected = regex::Regex::new(&format!("^{text}$")).unwrap().is_match(&name);
            prop_assert_eq!(matches(&pattern, &name, of_name), expected);
        }
    }
}
