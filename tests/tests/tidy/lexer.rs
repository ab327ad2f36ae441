//! A Rust source without the contents of its comments and strings, line for line. Pure.
//!
//! It knows just enough of the grammar to tell code from text: nested block comments, raw strings, escapes, and a
//! character literal from a lifetime.

/// `text` with every comment, string and character literal blanked out; lines stay where they are.
pub(crate) fn code_of(text: &str) -> String {
    let mut rest = text;
    let mut code = String::with_capacity(text.len());
    while let Some(sign) = rest.chars().next() {
        let in_word = code.ends_with(|last: char| last.is_alphanumeric() || last == '_');
        let length = literal_length(rest, in_word);
        if length == 0 {
            code.push(sign);
            rest = &rest[sign.len_utf8()..];
        } else {
            code.extend(rest[..length].chars().map(|sign| if sign == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    code
}

/// Length of the comment or literal that `text` begins with; 0 when it begins with code.
fn literal_length(text: &str, in_word: bool) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment_length(text);
    }
    if text.starts_with('"') {
        return quoted_length(text, '"');
    }
    if text.starts_with('\'') {
        return character_length(text);
    }
    let prefix = text.find(|sign: char| !matches!(sign, 'b' | 'c' | 'r')).unwrap_or(0);
    let after = &text[prefix..];
    if in_word || prefix == 0 || prefix > 2 || !after.starts_with(['"', '#', '\'']) {
        return 0;
    }
    if text[..prefix].contains('r') {
        let hashes = after.len() - after.trim_start_matches('#').len();
        let close = format!("\"{}", "#".repeat(hashes));
        let body = prefix + hashes + 1;
        return match after[hashes..].starts_with('"') {
            true => text[body..].find(&close).map_or(text.len(), |end| body + end + close.len()),
            false => 0,
        };
    }
    match after.chars().next() {
        Some('"') => prefix + quoted_length(after, '"'),
        Some('\'') => prefix + character_length(after),
        _ => 0,
    }
}

fn block_comment_length(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let step = match text.as_bytes().get(at..at + 2) {
            Some(b"/*") => {
                depth += 1;
                2
            }
            Some(b"*/") => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        at += step;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, sign) in text.char_indices().skip(1) {
        if sign == quote && !escaped {
            return at + 1;
        }
        escaped = sign == '\\' && !escaped;
    }
    text.len()
}

/// A character literal's length; 0 for a lifetime.
fn character_length(text: &str) -> usize {
    let mut signs = text.char_indices().skip(1);
    match (signs.next(), signs.next()) {
        (Some((_, '\\')), _) => quoted_length(text, '\''),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::code_of;

    #[test]
    fn comments_and_strings_are_blank() {
        let text =
            "let a = \"un\\\"safe\"; // unsafe\n/* unsafe /* unsafe */ unsafe */ let b = r#\"unsafe\"#;";
        let code = code_of(text);
        assert!(!code.contains("unsafe"), "{code}");
        assert!(code.contains("let a =") && code.contains("let b ="), "{code}");
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn code_next_to_literals_stays() {
        let text = "fn f<'a>(x: &'a str) { g('\"', b'\\'', b\"unsafe\", number\"x\"); unsafe { h() } }";
        let code = code_of(text);
        assert_eq!(code.matches("unsafe").count(), 1, "{code}");
        assert!(code.contains("fn f<'a>(x: &'a str)"), "{code}");
    }

    #[test]
    fn raw_identifiers_are_code() {
        assert_eq!(code_of("r#type + bare"), "r#type + bare");
    }
}
