//! In which order pages are rewritten, and what is in them.

use std::fmt;
use std::str::FromStr;

/// In which order the pages of the working set are rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// One after the other, again and again.
    Sweep,
    /// At random, each page as likely as any other at each write.
    Uniform,
    /// Most writes sweep over few pages, the others over the rest.
    HotAndCold {
        /// The share of the pages that is hot, in percent: 1 to 99.
        hot_pages_percent: u8,
        /// The share of the writes that goes to them, in percent: 1 to 99.
        hot_writes_percent: u8,
    },
    /// A sweep that works for some ticks (milliseconds) and rests for some.
    Phased {
        /// Ticks of work, at the workload's dirty rate.
        on_ticks: u32,
        /// Ticks of rest.
        off_ticks: u32,
    },
}

impl Pattern {
    /// 90 % of the writes go to 10 % of the pages.
    pub const HOT_AND_COLD: Self = Self::HotAndCold { hot_pages_percent: 10, hot_writes_percent: 90 };
    /// One second of work, one of rest.
    pub const PHASED: Self = Self::Phased { on_ticks: 1000, off_ticks: 1000 };

    /// The share of the writes that goes to the first region, in percent.
    pub(super) fn hot_share(self) -> u32 {
        match self {
            Self::HotAndCold { hot_writes_percent, .. } => hot_writes_percent.into(),
            Self::Sweep | Self::Uniform | Self::Phased { .. } => 100,
        }
    }

    /// Ticks of work, and ticks from one start of work to the next.
    pub(super) fn phases(self) -> (u32, u32) {
        match self {
            Self::Phased { on_ticks, off_ticks } => (on_ticks, on_ticks.saturating_add(off_ticks)),
            Self::Sweep | Self::Uniform | Self::HotAndCold { .. } => (1, 1),
        }
    }

    /// Whether there are times without work.
    pub fn rests(self) -> bool {
        matches!(self, Self::Phased { .. })
    }

    pub(super) fn validate(self) -> Result<(), PatternError> {
        match self {
            Self::HotAndCold { hot_pages_percent: pages, hot_writes_percent: writes }
                if !(1..=99).contains(&pages) || !(1..=99).contains(&writes) =>
            {
                Err(PatternError::Pattern {
                    text: self.to_string(),
                    wrong: "both percentages must be 1 to 99",
                })
            }
            Self::Phased { on_ticks, off_ticks }
                if on_ticks == 0 || off_ticks == 0 || on_ticks.checked_add(off_ticks).is_none() =>
            {
                Err(PatternError::Pattern {
                    text: self.to_string(),
                    wrong: "work and rest must be 1 ms or more, and less than 49 days",
                })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Sweep => "sweep".to_owned(),
            Self::Uniform => "uniform".to_owned(),
            Self::HotAndCold { hot_pages_percent, hot_writes_percent } => {
                format!("hot-and-cold:{hot_writes_percent}/{hot_pages_percent}")
            }
            Self::Phased { on_ticks, off_ticks } => format!("phased:{on_ticks}/{off_ticks}"),
        };
        formatter.pad(&text)
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    /// `sweep`, `uniform`, `hot-and-cold` or `hot-and-cold:90/10` (90 % of the writes to 10 % of the pages), `phased` or
    /// `phased:500/1500` (milliseconds of work and of rest).
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let wrong = |wrong| PatternError::Pattern { text: text.to_owned(), wrong };
        let (name, numbers) = match text.split_once(':') {
            Some((name, numbers)) => {
                let pair = numbers.split_once('/').and_then(|(first, second)| {
                    Some((first.parse::<u32>().ok()?, second.parse::<u32>().ok()?))
                });
                (
                    name,
                    Some(pair.ok_or_else(|| wrong("after the colon come two whole numbers, as in 90/10"))?),
                )
            }
            None => (text, None),
        };
        let percent = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
        let pattern = match (name, numbers) {
            ("sweep", None) => Self::Sweep,
            ("uniform", None) => Self::Uniform,
            ("hot-and-cold", None) => Self::HOT_AND_COLD,
            ("hot-and-cold", Some((writes, pages))) => {
                Self::HotAndCold { hot_pages_percent: percent(pages), hot_writes_percent: percent(writes) }
            }
            ("phased", None) => Self::PHASED,
            ("phased", Some((on_ticks, off_ticks))) => Self::Phased { on_ticks, off_ticks },
            ("sweep" | "uniform", Some(_)) => return Err(wrong("it takes no numbers")),
            _ => return Err(wrong("there are sweep, uniform, hot-and-cold and phased")),
        };
        pattern.validate()?;
        Ok(pattern)
    }
}

/// What the pages hold beside their stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Random words, different on each page.
    Incompressible,
    /// One word over and over, a different one on each page.
    Compressible,
}

impl fmt::Display for Content {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Incompressible => "incompressible",
            Self::Compressible => "compressible",
        })
    }
}

impl FromStr for Content {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        match text {
            "incompressible" => Ok(Self::Incompressible),
            "compressible" => Ok(Self::Compressible),
            _ => Err(PatternError::Content { text: text.to_owned() }),
        }
    }
}

/// Why a word is no pattern or no content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// No pattern, or not with these numbers.
    #[error("'{text}' is not a pattern: {wrong}")]
    Pattern {
        /// What was typed.
        text: String,
        /// What is wrong with it.
        wrong: &'static str,
    },
    /// No content.
    #[error("'{text}' is not a content: there are incompressible and compressible")]
    Content {
        /// What was typed.
        text: String,
    },
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::guest) fn any_pattern() -> impl Strategy<Value = Pattern> {
        prop_oneof![
            Just(Pattern::Sweep),
            Just(Pattern::Uniform),
            (1_u8..100, 1_u8..100).prop_map(|(hot_pages_percent, hot_writes_percent)| Pattern::HotAndCold {
                hot_pages_percent,
                hot_writes_percent
            }),
            (1_u32..2000, 1_u32..2000)
                .prop_map(|(on_ticks, off_ticks)| Pattern::Phased { on_ticks, off_ticks }),
        ]
    }

    #[test]
    fn patterns_and_contents_are_read() {
        for (text, pattern) in [
            ("sweep", Pattern::Sweep),
            ("uniform", Pattern::Uniform),
            ("hot-and-cold", Pattern::HOT_AND_COLD),
            ("hot-and-cold:80/20", Pattern::HotAndCold { hot_pages_percent: 20, hot_writes_percent: 80 }),
            ("phased", Pattern::PHASED),
            ("phased:500/1500", Pattern::Phased { on_ticks: 500, off_ticks: 1500 }),
        ] {
            assert_eq!(text.parse(), Ok(pattern));
        }
        let wrong =
            ["", "Sweep", "sweep:1/2", "hot-and-cold:0/10", "hot-and-cold:90/300", "phased:5", "phased:0/1"];
        for text in wrong {
            assert!(matches!(text.parse::<Pattern>(), Err(PatternError::Pattern { .. })), "{text}");
        }
        for content in [Content::Compressible, Content::Incompressible] {
            assert_eq!(content.to_string().parse(), Ok(content));
        }
        assert!(matches!("zip".parse::<Content>(), Err(PatternError::Content { .. })));
    }

    proptest! {
        #[test]
        fn patterns_are_read_as_they_are_shown(pattern in any_pattern()) {
            prop_assert_eq!(pattern.to_string().parse(), Ok(pattern));
        }
    }
}
