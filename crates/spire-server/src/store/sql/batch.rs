//! Statements that SQLite is given as one: each by itself wakes the thread of the database and is waited for.

use super::connection::{Arg, Connection};
use crate::store::StoreError;

/// Most values in one statement: SQLite counts them in 15 bits.
const MOST_VALUES: usize = 30_000;

/// What leaves a row as it is that is there already.
pub(super) const ONCE: &str = " ON CONFLICT DO NOTHING";

/// Statements in the order they run in, each with its own `$1`.
#[derive(Default)]
pub(super) struct Batch {
    sql: String,
    args: Vec<Arg>,
}

impl Batch {
    pub(super) fn add(&mut self, sql: &str, args: &[Arg]) {
        if !self.sql.is_empty() {
            self.sql.push_str("; ");
        }
        renumber(sql, self.args.len(), &mut self.sql);
        self.args.extend_from_slice(args);
    }

    /// [`insertion`].
    pub(super) fn insert(&mut self, insert: &str, rows: &[Vec<Arg>]) {
        for (sql, args) in insertion(insert, rows, ONCE) {
            self.add(&sql, &args);
        }
    }

    /// Runs them as the last ones of their transaction, which is committed with them where nobody waits to join it.
    /// The first that fails is the last that runs.
    pub(super) async fn run_last(self, db: &mut Connection) -> Result<(), StoreError> {
        db.last(self.sql, &self.args).await
    }
}

/// Statements that insert `rows`. `insert` ends before `VALUES`; every row has the same number of values, and the last is the
/// time of two columns, `created_at` and `updated_at`. `twice` says what becomes of rows that are there already.
pub(super) fn insertion(insert: &str, rows: &[Vec<Arg>], twice: &str) -> Vec<(String, Vec<Arg>)> {
    let width = rows.first().map_or(1, Vec::len).max(1);
    let chunks = rows.chunks(MOST_VALUES / width);
    chunks
        .map(|chunk| {
            let mut number = 0;
            let rows = chunk.iter().map(|row| {
                let mut values: Vec<_> = { row.iter() }
                    .map(|value| {
                        number += 1;
                        match value {
                            Arg::EntryRow(_) => format!(
                                "(SELECT id FROM registered_entries WHERE entry_id = ${number})"
                            ),
                            _ => format!("${number}"),
                        }
                    })
                    .collect();
                let time = values.pop().unwrap_or_default();
                values.extend([
                    format!("{time}::timestamptz"),
                    format!("{time}::timestamptz"),
                ]);
                format!("({})", values.join(", "))
            });
            let rows: Vec<_> = rows.collect();
            let sql = format!("{insert} VALUES {}{twice}", rows.join(", "));
            (sql, chunk.concat())
        })
        .collect()
}

/// Counts values of `sql` from `$1 + before` on. Our statements have a dollar nowhere else.
fn renumber(sql: &str, before: usize, out: &mut String) {
    let mut parts = sql.split('$');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit());
        let (number, rest) = part.split_at(end.unwrap_or(part.len()));
        let number = number.parse::<usize>().unwrap_or_default() + before;
        out.push_str(&format!("${number}{rest}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_through() {
        let mut batch = Batch::default();
        batch.add("INSERT INTO a VALUES ($1, $2, $1)", &[1.into(), 2.into()]);
        batch.add("DELETE FROM b", &[]);
        batch.add(
            "UPDATE c SET d = $1::timestamptz WHERE e = $10",
            &[3.into()],
        );
        let row = || vec![Arg::EntryRow("e".into()), "v".into(), "now".into()];
        batch.insert("INSERT INTO f", &[row(), row()]);
        let of = |n| format!("(SELECT id FROM registered_entries WHERE entry_id = ${n})");
        let wanted = [
            "INSERT INTO a VALUES ($1, $2, $1)".to_owned(),
            "DELETE FROM b".to_owned(),
            "UPDATE c SET d = $3::timestamptz WHERE e = $12".to_owned(),
            format!(
                "INSERT INTO f VALUES ({}, $5, $6::timestamptz, $6::timestamptz), ({}, $8, $9::timestamptz, $9::timestamptz) ON CONFLICT DO NOTHING",
                of(4),
                of(7)
            ),
        ];
        assert_eq!(batch.sql, wanted.join("; "));
        assert_eq!(batch.args.len(), 9);
    }
}
