//! Lists of keys and values such as `file=d.raw,readonly`, as QEMU and others take them.
//!
//! A key stands once, with or without a value. A comma that belongs to a value is typed twice. What keys there are is
//! said by whoever takes them out; what is left over is refused by name.

/// The items of a list that have not been taken yet.
#[derive(Debug)]
pub struct Items {
    items: Vec<(String, Option<String>)>,
    /// What the list may contain, for messages.
    known: &'static str,
}

impl Items {
    /// Splits a list; `known` says what it may contain.
    pub fn parse(text: &str, known: &'static str) -> Result<Self, String> {
        let mut items: Vec<(String, Option<String>)> = Vec::new();
        for item in split(text) {
            let (key, value) = match item.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (item, None),
            };
            if items.iter().any(|(seen, _)| *seen == key) {
                return Err(format!("{key} stands twice"));
            }
            items.push((key, value));
        }
        Ok(Self { items, known })
    }

    /// Takes out the value of a key that need not be there.
    pub fn optional(&mut self, key: &str) -> Result<Option<String>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(Some(value)) if !value.is_empty() => Ok(Some(value)),
            Some(_) => Err(format!("{key} needs a value: {}", self.known)),
        }
    }

    /// Takes out the value of a key that must be there.
    pub fn required(&mut self, key: &str) -> Result<String, String> {
        let value = self.optional(key)?;
        value.ok_or_else(|| format!("{key} is missing: {}", self.known))
    }

    /// Takes out a key that stands for itself; returns whether it was there.
    pub fn flag(&mut self, key: &str) -> Result<bool, String> {
        match self.take(key) {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(_)) => Err(format!("{key} takes no value")),
        }
    }

    /// Refuses what was not taken out.
    pub fn finish(self) -> Result<(), String> {
        match self.items.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("{key:?} is not known here: {}", self.known)),
        }
    }

    fn take(&mut self, key: &str) -> Option<Option<String>> {
        let index = self.items.iter().position(|(name, _)| name == key)?;
        Some(self.items.remove(index).1)
    }
}

/// Splits at commas; two in a row are one that is meant.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &str = "file=PATH[,readonly]";

    #[test]
    fn keys_come_in_any_order_with_and_without_values() {
        let mut items = Items::parse("readonly,file=a=b", KNOWN).unwrap();
        assert_eq!(items.required("file").unwrap(), "a=b");
        assert!(items.flag("readonly").unwrap());
        assert_eq!(items.optional("id").unwrap(), None);
        items.finish().unwrap();
    }

    #[test]
    fn a_comma_typed_twice_belongs_to_the_value() {
        let mut items = Items::parse("file=a,,b,readonly", KNOWN).unwrap();
        assert_eq!(items.required("file").unwrap(), "a,b");
        assert!(items.flag("readonly").unwrap());
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        let wrong = |text| {
            let mut items = Items::parse(text, KNOWN)?;
            items.required("file")?;
            items.flag("readonly")?;
            items.finish()
        };
        for (text, problem) in [
            ("", "file is missing: file=PATH[,readonly]"),
            ("file", "file needs a value: file=PATH[,readonly]"),
            ("file=", "file needs a value: file=PATH[,readonly]"),
            ("file=a,file=b", "file stands twice"),
            ("file=a,readonly=no", "readonly takes no value"),
            (
                "file=a,read-only",
                "\"read-only\" is not known here: file=PATH[,readonly]",
            ),
        ] {
            assert_eq!(wrong(text), Err(problem.to_owned()), "{text}");
        }
        assert_eq!(wrong("file=a,"), Ok(()));
    }
}
