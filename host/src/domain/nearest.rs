//! The known name that a misspelt one was meant to be.

/// Changes of one character (Damerau-Levenshtein) by which a name may differ, at the most; never more than half of its length.
const FAR: usize = 4;

/// The nearest of the known names, if one is near.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = known
        .into_iter()
        // Comparing takes memory by the product of the lengths, and the name may be anybody's.
        .filter(|known| known.len().abs_diff(name.len()) <= FAR)
        .map(|known| (strsim::damerau_levenshtein(known, name), known));
    distances.filter(|(distance, known)| *distance <= FAR.min(known.len() / 2)).min().map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn only_a_name_that_is_near_is_meant() {
        let known = ["cursor", "kind", "limit", "workspace_id"];
        for (name, meant) in [
            ("limt", Some("limit")),
            ("LIMIT", None),
            ("workspace", Some("workspace_id")),
            ("kidn", Some("kind")),
            ("nonsense", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), meant, "{name}");
        }
        assert_eq!(nearest(&"limit".repeat(100_000), known), None);
    }
}
