//! SIGUSR1: every `plugin_data_file` is read again, and what changed is told to its plugin.

use std::fmt::Display;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::{PluginConfig, PluginData};

/// The plugins that have a file, what was in it, and what each became.
pub struct DataFiles<P> {
    files: Vec<DataFile<P>>,
}

struct DataFile<P> {
    plugin: PluginConfig,
    path: PathBuf,
    content: Option<Zeroizing<Vec<u8>>>,
    part: P,
}

impl<P: Clone> DataFiles<P> {
    /// Of `plugins`, those that have a file.
    pub fn new(plugins: impl IntoIterator<Item = (PluginConfig, P)>) -> Self {
        let files = plugins.into_iter().filter_map(|(plugin, part)| {
            let PluginData::File(path) = &plugin.data else {
                return None;
            };
            Some(DataFile {
                path: path.clone(),
                content: std::fs::read(path).ok().map(Zeroizing::new),
                plugin,
                part,
            })
        });
        Self {
            files: files.collect(),
        }
    }

    /// Reads all files again and has `apply` tell a plugin what changed. What cannot be used is told, and the plugin
    /// goes on as it was. Returns what was done, for people.
    pub async fn read_again<F, E>(&mut self, mut apply: impl FnMut(PluginConfig, P) -> F) -> String
    where
        F: Future<Output = Result<(), E>>,
        E: Display,
    {
        if self.files.is_empty() {
            tracing::info!("no plugin has a plugin_data_file: there is nothing to read again");
            return "no plugin has a plugin_data_file".to_owned();
        }
        let (mut changed, mut failed) = (0, 0);
        for file in &mut self.files {
            let plugin = format!("{} {:?}", file.plugin.plugin_type, file.plugin.name);
            let path = file.path.display();
            let content = std::fs::read(&file.path).ok().map(Zeroizing::new);
            if content.is_some() && content == file.content {
                continue;
            }
            match apply(file.plugin.clone(), file.part.clone()).await {
                Ok(()) => {
                    changed += 1;
                    file.content = content;
                    tracing::info!(plugin, file = %path, "the plugin was configured anew");
                }
                Err(error) => {
                    failed += 1;
                    tracing::error!(plugin, file = %path, %error, "the plugin cannot be configured anew; it goes on as it was");
                }
            }
        }
        format!("{changed} plugins were configured anew, {failed} cannot be")
    }
}
